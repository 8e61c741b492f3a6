"""From lines to records: JSON Lines, CSV and plain text. What cannot be read is the reason why, as a string."""

import codecs
import csv
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from allam_jax.corpus.text_lines import DamagedFile, lines_of_file, units_of_lines
from allam_jax.errors import UserError

# A record, or the reason why it cannot be read.
Record = dict[str, Any] | str

NOT_UTF8 = "with invalid UTF-8"
TOO_LONG = "longer than max_record_bytes"
NULS = "with NUL characters, as in UTF-16 without a byte order mark"
MANY_CONTROLS = "with many control characters, as in UTF-16 without a byte order mark"


class Unreadable(str):
    """Stands for a value that cannot be read: the reason."""


def json_records(file: Path, *, limit: int) -> Iterator[Record]:
    """The objects of JSON Lines."""
    return map(_json_record, units_of_lines(lines_of_file(file, limit=limit), unit="line", limit=limit))


def text_records(file: Path, *, text_field: str, unit: str, limit: int) -> Iterator[Record]:
    """Each `unit` of a text (line, paragraph or file) as a record of one field."""
    for unit_bytes in units_of_lines(lines_of_file(file, limit=limit, any_end=True), unit=unit, limit=limit):
        if unit_bytes is None:
            yield TOO_LONG
            continue
        try:
            yield {text_field: unit_bytes.decode("utf-8-sig")}
        except UnicodeDecodeError:
            yield NOT_UTF8


def csv_records(
    file: Path, *, text_field: str, dialect: str, limit: int, optional: Sequence[str] = (), columns: Sequence[str] = ()
) -> Iterator[Record]:
    """Rows as records, with the names in the first line, or `columns` where it has none; dialect `csv` or `tsv`.

    A row is a bad record if its quoting is broken or it has more or fewer values than there are names.

    Raises:
        DamagedFile: a quoted value is never closed; all rows before it have been yielded.
        UserError: the first line has no name `text_field`, or names it or one of the `optional` columns twice.
    """
    csv.field_size_limit(sys.maxsize)  # rows are limited by _RowLines
    lines = _RowLines(lines_of_file(file, limit=limit), limit=limit)
    rows = csv.reader(lines, delimiter="\t" if dialect == "tsv" else ",", strict=True)
    names = list(columns) or None
    while True:
        lines.size = lines.count = 0
        try:
            row = next(rows)
        except StopIteration:
            return
        except _TooLongError:
            if lines.count > 1:
                raise DamagedFile(
                    f"{file}: a quoted value is still open after {limit} bytes; close its quote"
                ) from None
            yield TOO_LONG
            continue
        except csv.Error as error:
            if lines.ended:
                raise DamagedFile(f"{file}: damaged or cut short (it ends inside a quoted value); repair it") from None
            if names is None:
                raise UserError(
                    f"{file}: the first line is no line of CSV ({error}); it must name the columns"
                ) from None
            yield "with broken quoting" if '"' in str(error) else f"not CSV ({error})"
            continue
        if names is None:
            names = row
            check_columns(file, names, text_field=text_field, optional=optional)
        elif row and len(row) != len(names):
            yield "with another number of values than columns"
        elif any("\udc80" <= character <= "\udcff" for value in row if not value.isascii() for character in value):
            yield NOT_UTF8
        elif row:
            yield dict(zip(names, row, strict=True))


def check_columns(file: Path, names: Sequence[str], *, text_field: str, optional: Sequence[str]) -> None:
    """UserError unless there is one column for the text, and at most one for each of the others."""
    if text_field not in names:
        raise UserError(f"{file}: no column {text_field!r}; it has {', '.join(names)[:200]}")
    for name in (text_field, *optional):
        if names.count(name) > 1:
            raise UserError(f"{file}: {names.count(name)} columns are called {name!r}; rename or remove all but one")


class _TooLongError(Exception):
    """A row is longer than the limit."""


class _RowLines:
    """Lines for `csv.reader`, which go on after an error. `size` and `count` are of one row: its reader resets them."""

    def __init__(self, lines: Iterator[bytes | None], *, limit: int):
        self._lines, self._limit = lines, limit
        self.size = self.count = 0
        self.ended = False

    def __iter__(self) -> "_RowLines":
        return self

    def __next__(self) -> str:
        try:
            line = next(self._lines)
        except StopIteration:
            self.ended = True
            raise
        self.count += 1
        self.size += self._limit + 1 if line is None else len(line) + 1
        if line is None or self.size > self._limit + 1:
            raise _TooLongError
        return line.decode("utf-8-sig", "surrogateescape") + "\n"


def _json_record(line: bytes | None) -> Record:
    if line is None:
        return TOO_LONG
    try:
        record = json.loads(line.removeprefix(codecs.BOM_UTF8).decode())  # the codec "utf-8-sig" is slow
    except UnicodeDecodeError:
        return NOT_UTF8
    except (ValueError, RecursionError):  # an integer of thousands of digits raises ValueError too
        return NULS if b"\0" in line else "not JSON"
    return record if isinstance(record, dict) else "not a JSON object"
