"""Translations beside those of people: chrF of Popović (2015), as sacrebleu computes it."""

from collections.abc import Iterable, Iterator
from typing import Any

from allam_jax.data.documents import DocumentSource
from allam_jax.errors import UserError
from allam_jax.rewriting.documents_in_pieces import Whole


class ParallelText:
    """Documents of a reference translation, by the ids of what is translated."""

    def __init__(self, path: str, *, split: str, ids: Iterable[str]):
        """Reads the documents with these ids; UserError if there is none, or sacrebleu is not installed."""
        try:
            import sacrebleu.metrics
        except ImportError:
            raise UserError(
                "config.translate.reference: sacrebleu is not installed; pip install -r requirements-eval.txt"
            ) from None
        self._chrf = sacrebleu.metrics.CHRF()
        source, wanted = DocumentSource(path, split=split), set(ids)
        fields = map(source.fields, range(len(source)))
        self._texts = {one["id"]: one["text"] for one in fields if one.get("id") in wanted}
        if not self._texts:
            raise UserError(f"config.translate.reference: {path}: has no document with an id of the input's")
        self._found: list[tuple[str, str | None, str]] = []  # source, translation, reference

    def watched(self, wholes: Iterable[Whole]) -> Iterator[Whole]:
        """The same documents; remembers those that a model was asked about and that have a reference."""
        for whole in wholes:
            reference = self._texts.get(whole.document.id)
            if reference is not None and whole.asked:
                self._found.append((whole.document.text, whole.text, reference))
            yield whole

    def scores(self) -> dict[str, Any]:
        """chrF, 0 to 100, of the documents that were translated, and of all with nothing for those that are left out.

        `copying` is that of the untranslated texts: what a translation is more than.
        """
        translated = [(text, reference) for _, text, reference in self._found if text is not None]
        everything = [(text or "", reference) for _, text, reference in self._found]
        copied = [(original, reference) for original, _, reference in self._found]
        return {
            "documents": len(self._found),
            "translated": len(translated),
            "chrf": self._score(translated),
            "chrf_of_all": self._score(everything),
            "copying": self._score(copied),
            "signature": str(self._chrf.get_signature()),
        }

    def _score(self, pairs: list[tuple[str, str]]) -> float | None:
        if not pairs:
            return None
        texts, references = map(list, zip(*pairs, strict=True))
        return float(self._chrf.corpus_score(texts, [references]).score)
