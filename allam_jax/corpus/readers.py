"""The user's own files as documents: JSON Lines, CSV and text (each also .gz or .zst), Parquet, and web archives.

Bad records (invalid UTF-8, broken JSON, no text) are counted by file and reason. A file with more than an accepted
share of bad records stops the run. So do damaged files, which end early or are not what their name says, when they are
more than an accepted share of all files.
"""

import csv
import dataclasses
import difflib
import functools
import glob
import gzip
import itertools
import json
import os
import sys
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from allam_jax.corpus import web_archives
from allam_jax.corpus.document import Document
from allam_jax.corpus.settings import DocumentsSettings
from allam_jax.errors import UserError

_PLAIN = tuple(f".{kind}{compressed}" for kind in ("jsonl", "csv", "txt") for compressed in ("", ".gz", ".zst"))
SUFFIXES = (*_PLAIN, ".parquet", *web_archives.SUFFIXES)

# A record, or the reason why it cannot be read.
_Record = dict[str, Any] | str

_READ_BYTES = 1 << 20
_CHECK_EVERY = 10_000


@dataclasses.dataclass
class FileCounts:
    """What one file gave.

    Attributes:
        documents: number of good documents.
        bad: reason -> number of bad records.
        other: reason -> number of records without text that are no fault, such as images.
        damage: why the file could not be read to its end; empty if it could.
    """

    documents: int = 0
    bad: Counter[str] = dataclasses.field(default_factory=Counter)
    other: Counter[str] = dataclasses.field(default_factory=Counter)
    damage: str = ""

    def to_dict(self) -> dict[str, Any]:
        """The counts as JSON values."""
        return vars(self) | {"bad": dict(self.bad), "other": dict(self.other)}

    def __str__(self) -> str:
        reasons = "".join(f", {count} {reason}" for reason, count in sorted(self.bad.items()))
        return f"{self.documents} good{reasons}" + (f", then damaged: {self.damage}" if self.damage else "")


class _DamagedFile(UserError):
    """A file that ends early or is not what its name says. The message names the file."""


class FileReader:
    """Iterates over the documents of the files of one source, in sorted order.

    `counts` maps each file read so far to its `FileCounts`. A document's id is the record's `id` if it has one.
    Otherwise it is the file's name (its path below the deepest common directory) and the record's number, from 1.
    """

    def __init__(
        self, settings: DocumentsSettings, *, source: str, fields: Sequence[str] = (), part: int = 0, parts: int = 1
    ):
        """Finds the files of number `part` (from 0) of `parts`; UserError as for `find_files`.

        Parts are consecutive files of about equal bytes; some may be empty. `fields` are more fields or columns for the
        documents' metadata, where a record has them.
        """
        found = find_files(settings.path)
        self._root = Path(os.path.commonpath([file.absolute().parent for file in found]))
        self._max_damaged = int(settings.max_damaged_share * len(found))
        self.files = _part_of(found, part=part, parts=parts)
        self._parts = parts
        self.counts: dict[Path, FileCounts] = {}
        self._source, self._settings, self._text_field = source, settings, settings.text_field
        self._fields = [field for field in fields if field not in (settings.text_field, "id")]

    def __iter__(self) -> Iterator[Document]:
        self.counts = {}
        for file in self.files:
            counts = self.counts[file] = FileCounts()
            name = file.absolute().relative_to(self._root).as_posix()
            for number, record in enumerate(self._readable_records(file), 1):
                document = self._document(record, default_id=f"{name}:{number}")
                if isinstance(document, web_archives.NotText):
                    counts.other[document] += 1
                elif isinstance(document, str):
                    counts.bad[document] += 1
                else:
                    counts.documents += 1
                    yield document
                if number % _CHECK_EVERY == 0:
                    self._check_share(file)
            self._check_share(file)
        if self._parts == 1 and not any(counts.documents for counts in self.counts.values()):
            raise UserError(
                f"{self._source}: no documents in {', '.join(map(str, self.files[:3]))}; the corpus is empty"
            )

    def _readable_records(self, file: Path) -> Iterator[_Record]:
        """The records up to the damage, if there is any; raises if more files than accepted are damaged."""
        try:
            yield from self._records(file)
        except _DamagedFile as error:
            self.counts[file].damage = str(error).removeprefix(f"{file}: ")
            damaged = sum(bool(counts.damage) for counts in self.counts.values())
            if damaged > self._max_damaged:
                raise

    def _records(self, file: Path) -> Iterator[_Record]:
        if file.name.endswith(".parquet"):
            return _parquet_records(file, text_field=self._text_field, optional=("id", *self._fields))
        if file.name.endswith(web_archives.SUFFIXES):
            return _archive_records(file, text_field=self._text_field)
        if file.name.endswith((".csv", ".csv.gz", ".csv.zst")):
            return _csv_records(file, text_field=self._text_field)
        if file.name.endswith((".jsonl", ".jsonl.gz", ".jsonl.zst")):
            return map(_json_record, _units(_lines(file), unit="line"))
        to_record = functools.partial(_text_record, field=self._text_field)
        return map(to_record, _units(_lines(file), unit=self._settings.text_unit))

    def _document(self, record: _Record, *, default_id: str) -> Document | str:
        if isinstance(record, str):
            return record
        text = record.get(self._text_field)
        if text is None:
            return f"without field {self._text_field!r}"
        if not isinstance(text, str):
            return f"with field {self._text_field!r} not a string"
        if not text.strip():
            return "empty"
        id_ = default_id if record.get("id") is None else str(record["id"])
        try:
            f"{text}{id_}".encode()
        except UnicodeEncodeError:  # half of a surrogate pair, which JSON can spell as an escape
            return "with invalid Unicode"
        metadata = {field: record[field] for field in self._fields if record.get(field) is not None}
        return Document(text=text, id=id_, source=self._source, language=self._settings.language, metadata=metadata)

    def _check_share(self, file: Path) -> None:
        counts = self.counts[file]
        bad, accepted = counts.bad.total(), self._settings.max_bad_share
        if bad > accepted * (bad + counts.documents):
            raise UserError(
                f"{file}: too many bad records ({counts}; accepted share {accepted:g}); "
                f"repair the file, or raise max_bad_share"
            )


def find_files(given: str) -> list[Path]:
    """The files of a path (a file, a directory, or a glob pattern, `**` allowed), sorted.

    UserError if there is none (the message names the nearest path), or for a file without one of `SUFFIXES`.
    """
    path = Path(given).expanduser()
    if path.is_dir():
        found = [file for file in path.rglob("*") if file.name.endswith(SUFFIXES) and file.is_file()]
        if not found:
            raise UserError(f"{path}: no files to read in this directory; expected {', '.join(SUFFIXES)}")
    elif path.exists():
        found = [path]
    elif glob.has_magic(given):
        found = [Path(match) for match in set(glob.glob(str(path), recursive=True)) if Path(match).is_file()]
        if not found:
            raise UserError(f"{path}: no file matches this pattern")
    else:
        raise UserError(f"{path}: no such file or directory{_near(path)}")
    for file in found:
        if not file.name.endswith(SUFFIXES):
            raise UserError(f"{file}: cannot read this kind of file; expected {', '.join(SUFFIXES)}")
    return sorted(found)


def _part_of(files: Sequence[Path], *, part: int, parts: int) -> list[Path]:
    """The files of one part. All bytes are cut evenly; a file belongs to the part with the middle of its bytes."""
    sizes = [max(file.stat().st_size, 1) for file in files]
    middles = (end - size / 2 for size, end in zip(sizes, itertools.accumulate(sizes), strict=True))
    return [file for file, middle in zip(files, middles, strict=True) if int(middle * parts / sum(sizes)) == part]


def _near(path: Path) -> str:
    """The end of a message: names similar to the first part of the path that does not exist."""
    missing = path
    while not missing.parent.exists():
        missing = missing.parent
    names = [entry.name for entry in missing.parent.iterdir()] if missing.parent.is_dir() else []
    close = difflib.get_close_matches(missing.name, names, n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(str(missing.parent / name) for name in close)}?" if close else ""


def _lines(file: Path) -> Iterator[bytes]:
    """Lines without their ends; raises an error where compressed data is damaged or ends early."""
    pending: list[bytes] = []  # the pieces of a line that goes on in the next block
    try:
        for block in _blocks(file):
            *lines, last = block.split(b"\n")
            if lines:
                yield b"".join([*pending, lines[0]])
                yield from lines[1:]
                pending.clear()
            pending.append(last)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise _DamagedFile(f"{file}: damaged or cut short ({error}); fetch it again") from None
    except OSError as error:
        raise UserError(f"{file}: cannot read ({error.strerror or error})") from None
    if rest := b"".join(pending):
        yield rest


def _blocks(file: Path) -> Iterator[bytes]:
    if file.suffix == ".zst":
        yield from _zstd_blocks(file)
        return
    with gzip.open(file) if file.suffix == ".gz" else open(file, "rb") as stream:
        # `read` would lose the last block of data that is cut short; `read1` returns what there is.
        while block := stream.read1(_READ_BYTES):
            yield block


def _zstd_blocks(file: Path) -> Iterator[bytes]:
    """Decompresses one frame after another. The library's own stream reader ends silently inside a cut frame."""
    import zstandard

    decompressor = zstandard.ZstdDecompressor().decompressobj()
    fed = False
    try:
        with open(file, "rb") as stream:
            while block := stream.read(_READ_BYTES):
                while block:
                    if decompressor.eof:
                        decompressor, fed = zstandard.ZstdDecompressor().decompressobj(), False
                    yield decompressor.decompress(block)
                    fed, block = True, decompressor.unused_data
    except zstandard.ZstdError as error:
        raise EOFError(str(error)) from None
    if fed and not decompressor.eof:
        raise EOFError("the last frame is not complete")


def _units(lines: Iterable[bytes], *, unit: str) -> Iterator[bytes]:
    if unit == "line":
        yield from (line for line in lines if line.strip())  # blank lines are not records
        return
    unit_lines: list[bytes] = []
    for line in lines:
        if unit == "paragraph" and not line.strip():
            if unit_lines:
                yield b"\n".join(unit_lines)
            unit_lines = []
        else:
            unit_lines.append(line)
    if unit_lines:
        yield b"\n".join(unit_lines)


def _text_record(line: bytes, *, field: str) -> _Record:
    try:
        return {field: line.decode("utf-8-sig").rstrip("\r")}
    except UnicodeDecodeError:
        return "with invalid UTF-8"


def _json_record(line: bytes) -> _Record:
    try:
        record = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError:
        return "with invalid UTF-8"
    except (ValueError, RecursionError):  # an integer of thousands of digits raises ValueError too
        return "not JSON"
    return record if isinstance(record, dict) else "not a JSON object"


def _csv_records(file: Path, *, text_field: str) -> Iterator[_Record]:
    """Rows as records, with the names in the first line. A row with more or fewer values than names is a bad record."""
    csv.field_size_limit(sys.maxsize)
    lines = (line.decode("utf-8-sig", "surrogateescape") + "\n" for line in _lines(file))
    rows = csv.reader(lines)
    names = next(rows, None)
    if names is None:
        return
    if text_field not in names:
        raise UserError(f"{file}: no column {text_field!r}; it has {', '.join(names)[:200]}")
    for row in rows:
        if not row:
            continue
        if len(row) != len(names):
            yield "with another number of values than columns"
        elif any("\udc80" <= character <= "\udcff" for value in row for character in value):
            yield "with invalid UTF-8"
        else:
            yield dict(zip(names, row, strict=True))


def _archive_records(file: Path, *, text_field: str) -> Iterator[_Record]:
    try:
        yield from web_archives.archive_records(file, text_field=text_field)
    except web_archives.DamagedArchive as error:
        raise _DamagedFile(f"{file}: {error}; fetch it again") from None


def _parquet_records(file: Path, *, text_field: str, optional: Sequence[str]) -> Iterator[_Record]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(file) as parquet:
            names = parquet.schema_arrow.names
            if text_field not in names:
                raise UserError(f"{file}: no column {text_field!r}; it has {', '.join(names)}")
            columns = [text_field] + [name for name in optional if name in names and name != text_field]
            for batch in parquet.iter_batches(batch_size=1000, columns=columns):
                try:
                    yield from batch.to_pylist()
                except UnicodeDecodeError:
                    yield from _rows_one_by_one(batch)
    except (pyarrow.ArrowException, OSError) as error:
        raise _DamagedFile(f"{file}: damaged or not Parquet ({' '.join(str(error).split())}); fetch it again") from None


def _rows_one_by_one(batch: Any) -> Iterator[_Record]:
    """The rows of a batch in which some value is not valid UTF-8, which Parquet writers need not check."""
    for index in range(batch.num_rows):
        try:
            yield {name: batch.column(name)[index].as_py() for name in batch.schema.names}
        except UnicodeDecodeError:
            yield "with invalid UTF-8"
