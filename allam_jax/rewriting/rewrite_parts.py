"""One rewrite by several machines: what each leaves of its part, and the parts joined to what one machine writes.

WORKDIR/documents.jsonl.gz      the new documents of the part
WORKDIR/provenance.jsonl.gz, WORKDIR/aligned.jsonl.gz
WORKDIR/part.json               which part it is, of which dataset, its counts; written last
"""

import dataclasses
import gzip
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from allam_jax.corpus.document import Document
from allam_jax.corpus.shards import FIELDS, write_dataset
from allam_jax.errors import UserError
from allam_jax.files import child, read_json, write_json
from allam_jax.rewriting.documents_in_pieces import Whole
from allam_jax.rewriting.rewrite_report import PIECES, PROVENANCE, RewriteReport, compressed_lines, json_line

_PART, _DOCUMENTS = "part.json", "documents.jsonl.gz"
_KEYS = {"part": int, "parts": int, "dataset": dict, "made_by": dict, "report": dict}
_SHOWN = 5  # parts that an error names


@dataclasses.dataclass(frozen=True)
class RewrittenPart:
    """A part that has ended.

    Attributes:
        directory: its workdir.
        part, parts: its number, and how many there are.
        dataset: name and metadata of the whole dataset.
        made_by: hashes of model and instruction.
        report: `RewriteReport.to_dict` of its documents.
    """

    directory: Path
    part: int
    parts: int
    dataset: Mapping[str, Any]
    made_by: Mapping[str, str]
    report: Mapping[str, Any]


def write_part(
    wholes: Iterable[Whole],
    directory: Path,
    *,
    report: RewriteReport,
    part: int,
    parts: int,
    dataset: Mapping[str, Any],
    made_by: Mapping[str, str],
) -> None:
    """Writes the documents of a part; see `RewrittenPart`."""
    with compressed_lines(directory / _DOCUMENTS) as target:
        for document in report.documents(wholes, directory):
            target.write(json_line({field: getattr(document, field) for field in FIELDS}))
    described = {"part": part, "parts": parts, "dataset": dataset, "made_by": made_by}
    write_json(directory / _PART, described | {"report": report.to_dict()})


def read_parts(directory: Path) -> list[RewrittenPart]:
    """The parts whose workdirs are folders of a directory, in their order.

    Raises:
        UserError: parts are missing or not of one rewrite; names them.
    """
    if not directory.is_dir():
        raise UserError(f"{directory}: no such directory; give the one that holds the workdirs of all parts")
    folders = sorted(path for path in directory.iterdir() if path.is_dir() and not path.name.startswith("."))
    ended = [path for path in folders if (path / _PART).is_file()]
    found = [RewrittenPart(path, **read_json(path / _PART, keys=_KEYS)) for path in ended]
    if not found:
        raise UserError(f"{directory}: no folder has a {_PART}, which a part has when it has ended")
    first = found[0]
    for other in found[1:]:
        for name in ("parts", "dataset", "made_by"):
            if getattr(other, name) != getattr(first, name):
                raise UserError(f"{other.directory} and {first.directory}: parts of different rewrites ({name} differ)")
    by_number = {part.part: part for part in found}
    for part in found:
        if by_number[part.part] is not part:
            raise UserError(f"{part.directory} and {by_number[part.part].directory}: are both part {part.part}")
    if missing := sorted(set(range(first.parts)) - by_number.keys()):
        listed = ", ".join(map(str, missing[:_SHOWN])) + (", ..." if len(missing) > _SHOWN else "")
        waiting = [path.name for path in folders if path not in ended]
        hint = f" (of folders without {_PART}: {', '.join(waiting[:_SHOWN])})" if waiting else ""
        raise UserError(
            f"{directory}: {len(missing)} of {first.parts} parts are missing: {listed}{hint}; run them to their end"
        )
    return [by_number[number] for number in sorted(by_number)]


def join_parts(parts: Sequence[RewrittenPart], workdir: Path) -> RewriteReport:
    """Writes dataset, provenance and aligned pieces of all parts; returns their report."""
    report = RewriteReport(made_by=parts[0].made_by)
    for part in parts:
        report.add(part.report)
    for name in (PROVENANCE, PIECES):
        with compressed_lines(workdir / name) as target:
            for part in parts:
                target.writelines(_lines_of(part.directory / name))
    name = parts[0].dataset["name"]
    write_dataset(
        (Document(**json.loads(line)) for part in parts for line in _lines_of(part.directory / _DOCUMENTS)),
        directory=child(workdir, name, what="the name of the dataset"),
        name=name,
        validation_share=0.0,
        metadata=parts[0].dataset["metadata"],
    )
    return report


def _lines_of(path: Path) -> Iterator[bytes]:
    try:
        with gzip.open(path) as file:
            yield from file
    except (OSError, EOFError) as error:
        raise UserError(f"{path}: cannot be read ({error}); run this part again in an empty workdir") from None
