"""From Parquet to records of plain values: dates, times and durations become ISO 8601 strings."""

import contextlib
import datetime
import decimal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.compute
import pyarrow.parquet
from pyarrow import types

from allam_jax.corpus.record_formats import NOT_UTF8, TOO_LONG, Record, Unreadable, check_columns
from allam_jax.corpus.text_lines import DamagedFile

_ROWS = 1000  # of a batch, unless they are large
_BATCH_BYTES = 1 << 28
_MICROSECOND = datetime.timedelta(microseconds=1)


def parquet_records(file: Path, *, text_field: str, optional: Sequence[str], limit: int) -> Iterator[Record]:
    """The rows, with the text and those of the `optional` columns that there are.

    Raises:
        DamagedFile: the file is damaged or not Parquet; all rows before that point have been yielded.
        UserError: there is no column `text_field`, or a column that is read occurs twice.
    """
    with _opened(file) as parquet:
        names = parquet.schema_arrow.names
        check_columns(file, names, text_field=text_field, optional=optional)
        columns = [text_field] + [name for name in optional if name in names and name != text_field]
        for group in range(parquet.num_row_groups):
            rows = _rows_of_batch(parquet.metadata.row_group(group), columns)
            for batch in parquet.iter_batches(batch_size=rows, row_groups=[group], columns=columns):
                values = [plain_values(batch.column(name), limit=limit) for name in columns]
                for row in zip(*values, strict=True):
                    yield str(row[0]) if isinstance(row[0], Unreadable) else dict(zip(columns, row, strict=True))


def column_names(file: Path) -> list[str]:
    """The names of the file's columns; DamagedFile if it is damaged or not Parquet."""
    with _opened(file) as parquet:
        return parquet.schema_arrow.names


def check_schema(file: Path, *, text_field: str, optional: Sequence[str]) -> None:
    """Raises what `parquet_records` raises for the file's schema."""
    check_columns(file, column_names(file), text_field=text_field, optional=optional)


@contextlib.contextmanager
def _opened(file: Path) -> Iterator[Any]:
    try:
        # The buffers are those of a page, not of a row group.
        with pyarrow.parquet.ParquetFile(file, pre_buffer=False, buffer_size=1 << 20) as parquet:
            yield parquet
    except (pyarrow.ArrowException, OSError) as error:
        raise DamagedFile(f"{file}: damaged or not Parquet ({' '.join(str(error).split())}); fetch it again") from None


def _rows_of_batch(group: Any, columns: Sequence[str]) -> int:
    """How many rows are read at once, so that memory stays bounded where values are large.

    A value can be as large as the dictionary of its column, and repeat in every row.
    """
    largest = 1.0
    for index in range(group.num_columns):
        chunk = group.column(index)
        if chunk.path_in_schema.partition(".")[0] not in columns:
            continue
        size = chunk.total_uncompressed_size
        largest = max(largest, size / max(group.num_rows, 1))
        if chunk.has_dictionary_page:
            share = (chunk.data_page_offset - chunk.dictionary_page_offset) / max(chunk.total_compressed_size, 1)
            largest = max(largest, size * share)
    return int(min(max(_BATCH_BYTES / largest, 1), _ROWS))


def plain_values(column: Any, *, limit: int) -> list[Any]:
    """The values of a column as what JSON can hold, or `Unreadable`."""
    column = _in_python_s_range(column)
    too_long: list[bool] = []
    if types.is_string(column.type) or types.is_large_string(column.type) or _is_binary(column.type):
        lengths = pyarrow.compute.binary_length(column)
        if (pyarrow.compute.max(lengths).as_py() or 0) > limit:
            too_long = pyarrow.compute.greater(lengths, limit).to_pylist()
            column = column.filter(pyarrow.array([not long for long in too_long]))
    try:
        values = column.to_pylist()
    except (ValueError, OverflowError, pyarrow.ArrowException):  # some value: not UTF-8, or a date of the year 20000
        values = [_value(scalar) for scalar in column]
    if not (types.is_string(column.type) or types.is_large_string(column.type)):
        values = [_plain(value) for value in values]
    if too_long:
        short = iter(values)
        values = [Unreadable(TOO_LONG) if long else next(short) for long in too_long]
    return values


def _in_python_s_range(column: Any) -> Any:
    """The column with microseconds for nanoseconds, UTC for any zone, and plain strings for all layouts of strings."""
    if isinstance(column, pyarrow.ExtensionArray) and types.is_string(column.type.storage_type):  # JSON
        column = column.storage
    if types.is_dictionary(column.type):
        column = column.dictionary_decode()
    kind = column.type
    if types.is_timestamp(kind):
        return column.cast(pyarrow.timestamp("us" if kind.unit == "ns" else kind.unit, kind.tz and "UTC"), safe=False)
    if types.is_duration(kind) and kind.unit == "ns":
        return column.cast(pyarrow.duration("us"), safe=False)
    if types.is_time64(kind):
        return column.cast(pyarrow.time64("us"), safe=False)
    if types.is_string_view(kind):
        return column.cast(pyarrow.large_string())
    return column.cast(pyarrow.large_binary()) if types.is_binary_view(kind) else column


def _is_binary(kind: Any) -> bool:
    return types.is_binary(kind) or types.is_large_binary(kind)


def _value(scalar: Any) -> Any:
    try:
        return scalar.as_py()
    except UnicodeDecodeError:
        return Unreadable(NOT_UTF8)
    except (ValueError, OverflowError, pyarrow.ArrowException):
        return Unreadable("out of range")


def _plain(value: Any) -> Any:
    """A value as what JSON can hold; times as ISO 8601."""
    match value:
        case datetime.date() | datetime.time():  # and datetime.datetime
            return value.isoformat()
        case datetime.timedelta():
            return f"PT{decimal.Decimal(value // _MICROSECOND) / 10**6:f}S"
        case decimal.Decimal():
            return str(value)
        case bytes():
            try:
                return value.decode()
            except UnicodeDecodeError:
                return Unreadable(NOT_UTF8)
        case dict():
            return {str(_plain(key)): _plain(item) for key, item in value.items()}
        case list() | tuple():
            return [_plain(item) for item in value]
        case None | bool() | int() | float() | str():
            return value
    return str(value)  # such as a UUID
