"""What a run of `rewrite` or `translate` leaves beside its dataset: provenance, aligned pieces, counts, examples."""

import contextlib
import dataclasses
import gzip
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from allam_jax.corpus.document import Document
from allam_jax.files import atomic_path, json_text
from allam_jax.report.markdown import plain, quote, section, table, write_report
from allam_jax.rewriting.documents_in_pieces import Whole

PROVENANCE, PIECES = "provenance.jsonl.gz", "aligned.jsonl.gz"
_EXAMPLES = 10  # failed pieces shown of each check
_SHOWN = 600  # characters of a piece


class RewriteReport:
    """Counts the documents that pass through `documents`, and writes what is known of them."""

    def __init__(self, *, made_by: Mapping[str, str]):
        """`made_by`: hashes of the model and of the instruction, for every document."""
        self._made_by = dict(made_by)
        self._checks: Counter[str] = Counter()
        self._examples: dict[str, list[tuple[str, str, str]]] = {}  # check -> original, rewrite, evidence
        self.counts: Counter[str] = Counter(
            dict.fromkeys(("documents", "untouched", "dropped", "pieces", "rewritten", "failed", "tried_again"), 0)
        )

    def documents(self, wholes: Iterable[Whole], directory: Path) -> Iterator[Document]:
        """The new documents; beside them, in `directory`, a row of provenance and a row of pieces for each."""
        with compressed_lines(directory / PROVENANCE) as provenance, compressed_lines(directory / PIECES) as pieces:
            for whole in wholes:
                self._count(whole)
                provenance.write(json_line(self._provenance(whole)))
                if whole.asked:
                    pieces.write(json_line(self._pieces(whole)))
                if whole.text is not None:
                    yield dataclasses.replace(whole.document, text=whole.text, language=whole.language)

    def summary(self) -> dict[str, Any]:
        """The counts, and how many pieces each check found something in."""
        return {**self.counts, "found": dict(self._checks.most_common())}

    def to_dict(self) -> dict[str, Any]:
        """All that `add` needs, as JSON values."""
        return {"counts": dict(self.counts), "checks": dict(self._checks), "examples": self._examples}

    def add(self, other: Mapping[str, Any]) -> None:
        """Adds what `to_dict` of another report gave, whose documents come behind those of this one."""
        self.counts.update(other["counts"])
        self._checks.update(other["checks"])
        for name, examples in other["examples"].items():
            mine = self._examples.setdefault(name, [])
            mine.extend(tuple(one) for one in examples[: _EXAMPLES - len(mine)])

    def write_examples(self, path: Path) -> None:
        """A page with failed pieces of each check: what was found, the original, the rewrite."""
        counts = [{"check": name, "pieces": count} for name, count in self._checks.most_common()]
        parts = [table(counts) if counts else "None."]
        for name, examples in sorted(self._examples.items()):
            shown = [
                part
                for original, text, evidence in examples
                for part in (f"Found: {plain(evidence)}", *map(quote, (original[:_SHOWN], text[:_SHOWN])))
            ]
            parts.append(section(name, *shown))
        write_report(path, title="Pieces that failed", sections=parts)

    def _count(self, whole: Whole) -> None:
        self.counts["documents"] += 1
        self.counts["untouched"] += whole.text == whole.document.text
        self.counts["dropped"] += whole.text is None
        for original, outcome in zip(whole.asked, whole.outcomes, strict=True):
            self.counts["pieces"] += 1
            self.counts["rewritten" if outcome.passes else "failed"] += 1
            self.counts["tried_again"] += outcome.attempts > 1
            for finding in outcome.findings:
                self._checks[finding.check] += 1
                examples = self._examples.setdefault(finding.check, [])
                if len(examples) < _EXAMPLES:
                    examples.append((original, outcome.text or "", finding.evidence))

    def _provenance(self, whole: Whole) -> dict[str, Any]:
        failed = [
            {"piece": number, "check": finding.check, "evidence": finding.evidence}
            for number, outcome in enumerate(whole.outcomes)
            for finding in outcome.findings
        ]
        return {
            "id": whole.document.id,
            "source": whole.document.source,
            **self._made_by,
            "kept": whole.text is not None,
            "pieces": len(whole.asked),
            "rewritten": sum(outcome.passes for outcome in whole.outcomes),
            "attempts": sum(outcome.attempts for outcome in whole.outcomes),
            "failed": failed,
        }

    def _pieces(self, whole: Whole) -> dict[str, Any]:
        """The pieces that were asked about, each with its rewrite, or null where it has none that passes."""
        pairs = zip(whole.asked, whole.outcomes, strict=True)
        return {
            "id": whole.document.id,
            "source": whole.document.source,
            "language": whole.document.language,
            **self._made_by,
            "pieces": [[text, outcome.text if outcome.passes else None] for text, outcome in pairs],
        }


def json_line(value: Mapping[str, Any]) -> bytes:
    """A value as a line of JSON."""
    return f"{json_text(value)}\n".encode()


@contextlib.contextmanager
def compressed_lines(path: Path) -> Iterator[gzip.GzipFile]:
    """A compressed file that appears when it is whole. It stores no name and no time: equal rows give equal bytes."""
    with (
        atomic_path(path) as temporary,
        open(temporary, "wb") as file,
        gzip.GzipFile("", "wb", 3, file, mtime=0) as target,
    ):
        yield target
