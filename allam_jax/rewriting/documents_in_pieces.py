"""The machine behind `rewrite` and `translate`: documents -> pieces -> prompts; answers -> checked pieces -> documents.

Pieces that a model is asked about are numbered by their document and their place in it, so answers on disk are matched
by their number alone, nothing but one document is ever in memory, and a part of the documents is rewritten as it is in
the whole: the seed of a row follows from its number.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from allam_jax.corpus.document import Document
from allam_jax.data.documents import DocumentSource
from allam_jax.errors import UserError
from allam_jax.generation.over_rows import read_answers
from allam_jax.generation.rows import Prompt
from allam_jax.rewriting.checks import Finding, Rewrite, findings
from allam_jax.rewriting.corpus_changes import stems_of_two
from allam_jax.rewriting.document_pieces import Count, Piece, patterns_of, pieces_of, rejoin
from allam_jax.rewriting.glossary import Glossary, Term
from allam_jax.rewriting.instructions import Instruction
from allam_jax.rewriting.rules_worker import LANGUAGE
from allam_jax.rewriting.settings import RewriteSettings
from allam_jax.rewriting.text_facts import folded_words, stem

NO_ANSWER = "no answer"
_FIELDS = ("id", "source", "language")
PIECES_OF_A_DOCUMENT = 10_000_000  # by which the numbers of two documents' first pieces differ
_REFERENCE_DOCUMENTS = 10_000  # of which the ordinary words are taken


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of a piece: the text of its last attempt if there is one, what is wrong with it, the attempts."""

    text: str | None
    findings: Sequence[Finding]
    attempts: int

    @property
    def passes(self) -> bool:
        """Whether the text can stand in place of the original."""
        return self.text is not None and not self.findings


@dataclasses.dataclass(frozen=True)
class Whole:
    """A document with what became of its pieces.

    Attributes:
        document: as it was.
        text: as it is now; None where the document is left out.
        language: of the new text.
        first: number of its first piece that a model is asked about.
        asked: the texts of these pieces.
        outcomes: of each of them.
    """

    document: Document
    text: str | None
    language: str
    first: int
    asked: Sequence[str]
    outcomes: Sequence[Outcome]


class DocumentsInPieces:
    """The documents of a dataset, cut into pieces, and what is made of them by the settings of a task.

    Args:
        source: the documents, with fields `id`, `source` and `language`.
        settings: section of the task.
        instruction: asked about each piece; None: a prompt is the bare text of a piece.
        count: counts tokens.
        key: name of the section, for errors.
        glossary: terms that a model is told and that checks look for; None: there are none.
    """

    def __init__(
        self,
        source: DocumentSource,
        *,
        settings: RewriteSettings,
        instruction: Instruction | None,
        count: Count,
        key: str,
        glossary: Glossary | None = None,
    ):
        self._source, self._settings, self._instruction, self._count = source, settings, instruction, count
        self._glossary = glossary
        self._keep = patterns_of(settings.keep, key=f"{key}.keep")
        self._common: frozenset[str] | None = None
        if missing := [name for name in _FIELDS if len(source) and name not in source.fields(0)]:
            raise UserError(f"config.{key}.input: its documents have no {' and no '.join(missing)}; write them with "
                            "the corpus task")  # fmt: skip

    def share(self) -> range:
        """The places of the documents in this part: a contiguous share of those that the settings ask for."""
        part, parts = self._settings.part, self._settings.parts
        return range(self._number() * part // parts, self._number() * (part + 1) // parts)

    def _number(self) -> int:
        return min(len(self._source), self._settings.documents or len(self._source))

    def _document(self, index: int) -> Document:
        fields = self._source.fields(index)
        return Document(text=fields["text"], id=fields["id"], source=fields["source"], language=fields["language"])

    def prompts(self, directories: Sequence[Path]) -> Iterator[Prompt]:
        """What is asked next: the pieces without a rewrite that passes in the answers of earlier attempts."""
        for whole in self.wholes(directories):
            for number, (text, outcome) in enumerate(zip(whole.asked, whole.outcomes, strict=True), start=whole.first):
                if not outcome.passes:
                    yield self._prompt(number, text, whole.document)

    def wholes(self, directories: Sequence[Path]) -> Iterator[Whole]:
        """The documents with the best attempt at each piece; answers lie in the directories, one for each attempt."""
        attempts = [_ByNumber(read_answers(directory)) for directory in directories]
        for index in self.share():
            document, first = self._document(index), index * PIECES_OF_A_DOCUMENT
            pieces = self._pieces(document)
            asked = [piece.text for piece in pieces if not piece.kept]
            if len(asked) > PIECES_OF_A_DOCUMENT:
                raise UserError(
                    f"document {document.id}: more than {PIECES_OF_A_DOCUMENT:,} pieces; cut it into several"
                )
            outcomes = [self._outcome(first + n, text, document, attempts) for n, text in enumerate(asked)]
            yield Whole(document, self._text(pieces, outcomes), self._language(document), first, asked, outcomes)

    def _outcome(self, number: int, text: str, document: Document, attempts: Sequence["_ByNumber"]) -> Outcome:
        outcome = Outcome(None, (Finding(NO_ANSWER, ""),), 0)
        for attempt, answers in enumerate(attempts, start=1):
            if outcome.passes:
                break
            if (record := answers.take(number)) is not None:
                outcome = self._judged(text, document, record["answers"][0], attempts=attempt)
        return outcome

    def _text(self, pieces: Sequence[Piece], outcomes: Sequence[Outcome]) -> str | None:
        failed = self._settings.failed
        if failed == "drop_document" and not all(outcome.passes for outcome in outcomes):
            return None
        instead = "" if failed == "drop" else None
        given = (outcome.text if outcome.passes else instead for outcome in outcomes)
        text = rejoin(pieces, [None if piece.kept else next(given) for piece in pieces])
        return text if text.strip() else None

    def _pieces(self, document: Document) -> list[Piece]:
        settings = self._settings
        if document.source in settings.keep_sources or document.language == settings.to_language:
            return [Piece(document.text, kept=True)]
        return pieces_of(
            document.text,
            most_tokens=settings.piece_tokens,
            count=self._count,
            keep=self._keep,
            by_sentence=settings.by_sentence,
        )

    def _language(self, document: Document) -> str:
        return self._settings.to_language or document.language

    def _prompt(self, number: int, text: str, document: Document) -> Prompt:
        kept = {"id": document.id, LANGUAGE: document.language}
        if self._instruction is None:
            return Prompt(number, text, kept)
        messages = self._instruction.messages(text, language=document.language, terms=self._terms(text))
        return Prompt(number, messages, kept)

    def _terms(self, text: str) -> list[Term]:
        return self._glossary.terms_in(text) if self._glossary else []

    def _judged(self, original: str, document: Document, answer: Mapping[str, Any], *, attempts: int) -> Outcome:
        language = self._language(document)
        rewrite = Rewrite(
            original,
            answer["text"].strip(),
            language,
            finish_reason=answer["finish_reason"],
            source_language=document.language,
            common=self._common_stems() if "names" in self._settings.checks.names and language == "ar" else frozenset(),
            terms=self._terms(original),
        )
        return Outcome(rewrite.text, findings(rewrite, self._settings.checks), attempts)

    def _common_stems(self) -> frozenset[str]:
        """Stems of ordinary words: those of the user's list, or of two documents of the input."""
        if self._common is None:
            if self._settings.common_words:
                words = Path(self._settings.common_words).read_text(encoding="utf-8").split()
                self._common = frozenset(map(stem, folded_words(" ".join(words))))
            else:
                some = range(min(self._number(), _REFERENCE_DOCUMENTS))  # of the whole input, in every part
                self._common = stems_of_two(self._document(index).text for index in some)
        return self._common


class _ByNumber:
    """Records in the order of their row numbers, some of which are missing."""

    def __init__(self, records: Iterator[dict[str, Any]]):
        self._records = records
        self._next: dict[str, Any] | None = next(records, None)

    def take(self, number: int) -> dict[str, Any] | None:
        """The record of a row, if there is one; rows are asked for in ascending order."""
        if self._next is None or self._next["row"] != number:
            return None
        record, self._next = self._next, next(self._records, None)
        return record
