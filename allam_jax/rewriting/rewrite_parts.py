"""One rewrite by several machines: what each leaves of its part, and the parts joined to what one machine writes.

WORKDIR/documents.jsonl.gz      the new documents of the part
WORKDIR/provenance.jsonl.gz, WORKDIR/aligned.jsonl.gz
WORKDIR/part.json               which part it is, of which rewrite, its counts, hashes of the files; written last
"""

import dataclasses
import gzip
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from allam_jax.corpus.document import Document
from allam_jax.corpus.shards import FIELDS, write_dataset
from allam_jax.errors import UserError
from allam_jax.files import check_shape, child, read_json, sha256_of_file, write_json
from allam_jax.rewriting.documents_in_pieces import Whole
from allam_jax.rewriting.rewrite_report import PIECES, PROVENANCE, RewriteReport, compressed_lines, json_line

_PART, _DOCUMENTS = "part.json", "documents.jsonl.gz"
_KEYS = {"part": int, "parts": int, "dataset": dict, "asked": dict, "made_by": dict, "report": dict, "files": dict}
_ALIKE = ("parts", "dataset", "asked", "made_by")  # what all parts of a rewrite share
_KEYS_OF_REPORT = {"counts": dict, "checks": dict, "examples": dict}
_FILES = (_DOCUMENTS, PROVENANCE, PIECES)
_SHOWN = 5  # parts, or keys, that an error names


@dataclasses.dataclass(frozen=True)
class RewrittenPart:
    """A part that has ended.

    Attributes:
        directory: its workdir.
        part, parts: its number, and how many there are.
        dataset: name and metadata of the whole dataset.
        asked: what decides which pieces there are and what is asked about them.
        made_by: hashes of model and instruction.
        report: `RewriteReport.to_dict` of its documents.
        files: name -> SHA-256 of the other files.
    """

    directory: Path
    part: int
    parts: int
    dataset: Mapping[str, Any]
    asked: Mapping[str, Any]
    made_by: Mapping[str, str]
    report: Mapping[str, Any]
    files: Mapping[str, str]


def write_part(
    wholes: Iterable[Whole],
    directory: Path,
    *,
    report: RewriteReport,
    part: int,
    parts: int,
    dataset: Mapping[str, Any],
    asked: Mapping[str, Any],
    made_by: Mapping[str, str],
) -> None:
    """Writes the documents of a part; see `RewrittenPart`."""
    with compressed_lines(directory / _DOCUMENTS) as target:
        for document in report.documents(wholes, directory):
            target.write(json_line({field: getattr(document, field) for field in FIELDS}))
    described = {"part": part, "parts": parts, "dataset": dataset, "asked": asked, "made_by": made_by}
    files = {name: sha256_of_file(directory / name) for name in _FILES}
    write_json(directory / _PART, described | {"report": report.to_dict(), "files": files})


def read_parts(directory: Path) -> list[RewrittenPart]:
    """The parts whose workdirs are folders of a directory, in their order.

    Raises:
        UserError: parts are missing or not of one rewrite; names them.
    """
    if not directory.is_dir():
        raise UserError(f"{directory}: no such directory; give the one that holds the workdirs of all parts")
    folders = sorted(path for path in directory.iterdir() if path.is_dir() and not path.name.startswith("."))
    ended = [path for path in folders if (path / _PART).is_file()]
    found = [_read_part(path) for path in ended]
    if not found:
        hint = "; it is a part itself: give the folder above" if (directory / _PART).is_file() else ""
        raise UserError(f"{directory}: no folder has a {_PART}, which a part has when it has ended{hint}")
    first = found[0]
    for other in found[1:]:
        if names := [name for key in _ALIKE for name in _different(getattr(first, key), getattr(other, key), key)]:
            raise UserError(
                f"{other.directory} and {first.directory}: parts of different rewrites, which differ in "
                f"{', '.join(names[:_SHOWN])}; move away those of the other one"
            )
    by_number = {part.part: part for part in found}
    for part in found:
        if by_number[part.part] is not part:
            raise UserError(
                f"{part.directory} and {by_number[part.part].directory}: are both part {part.part}; move one away"
            )
    if missing := sorted(set(range(first.parts)) - by_number.keys()):
        listed = ", ".join(map(str, missing[:_SHOWN])) + (", ..." if len(missing) > _SHOWN else "")
        waiting = [path.name for path in folders if path not in ended]
        hint = f" (of folders without {_PART}: {', '.join(waiting[:_SHOWN])})" if waiting else ""
        raise UserError(
            f"{directory}: {len(missing)} of {first.parts} parts are missing: {listed}{hint}; run them to their end"
        )
    return [by_number[number] for number in sorted(by_number)]


def _read_part(directory: Path) -> RewrittenPart:
    path = directory / _PART
    values = read_json(path, keys=_KEYS)
    check_shape(values["dataset"], kind=dict, keys={"name": str, "metadata": dict}, where=f"{path}: dataset")
    check_shape(values["report"], kind=dict, keys=_KEYS_OF_REPORT, where=f"{path}: report")
    check_shape(values["files"], kind=dict, keys=dict.fromkeys(_FILES, str), where=f"{path}: files")
    part = RewrittenPart(directory, **{key: values[key] for key in _KEYS})
    if not 0 <= part.part < part.parts:
        raise UserError(f"{path}: part {part.part} of {part.parts}, which there is not; run the part again")
    return part


def _different(first: Any, other: Any, name: str) -> Iterator[str]:
    """The names of the values in which two JSON values differ, with dots between them."""
    if isinstance(first, dict) and isinstance(other, dict):
        for key in sorted(first.keys() | other.keys()):
            yield from _different(first.get(key), other.get(key), f"{name}.{key}")
    elif first != other:
        yield name


def join_parts(parts: Sequence[RewrittenPart], workdir: Path) -> RewriteReport:
    """Writes dataset, provenance and aligned pieces of all parts; returns their report.

    UserError, before anything is written, for a file that is not the one that its part has written.
    """
    for part in parts:
        for name, hash_ in part.files.items():
            path = part.directory / name
            if not path.is_file():
                raise UserError(f"{path}: no such file; copy it again, or run this part again")
            if sha256_of_file(path) != hash_:
                raise UserError(
                    f"{path}: damaged, or not the file that this part has written; copy it again, or run this part "
                    "again"
                )
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
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: cannot be read ({error}); run this part again in an empty workdir") from None
