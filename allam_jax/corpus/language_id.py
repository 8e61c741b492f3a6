"""Language identification with fastText's lid.176 (Joulin et al. 2016), offline, with the model from the catalog.

Vowel marks lower the model's score: its median is 0.71 on hadith as printed, and 0.97 on the same texts without marks.
Remove the marks first (`normalise.without_marks`).
"""

import functools
import tempfile
from pathlib import Path
from typing import Any

from allam_jax.corpus import catalog
from allam_jax.corpus.fasttext_classifier import neutral


@functools.lru_cache(maxsize=1)
def _model() -> Any:
    import fasttext

    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "lid.176.ftz"
        path.write_bytes(catalog.read_asset("language_id"))
        return fasttext.load_model(str(path))


def identify(unmarked: str, *, count: int = 3) -> dict[str, float]:
    """The most probable languages of a text without vowel marks: code -> probability, the best first.

    Codes are ISO 639-1 where the language has one.
    """
    labels, scores = _model().predict(neutral(unmarked).replace("\n", " "), k=count)
    return {
        label.removeprefix("__label__"): min(float(score), 1.0) for label, score in zip(labels, scores, strict=True)
    }
