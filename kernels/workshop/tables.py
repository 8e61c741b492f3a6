"""Markdown tables of records."""

from collections.abc import Iterable, Mapping, Sequence

Record = dict[str, object]


def of_records(records: Sequence[Mapping[str, object]]) -> str:
    """A table with a column for every key, in the order in which the keys first come.

    Floats have four digits; None and keys that a record lacks are empty cells.
    """
    columns = list(dict.fromkeys(key for record in records for key in record))
    rows = [_row(record.get(column) for column in columns) for record in records]
    return "\n".join([_row(columns), f"|{'---|' * len(columns)}", *rows])


def first_line(error: BaseException) -> str:
    """The kind of an error and the first line of its message."""
    return f"{type(error).__name__}: {error}".strip().split("\n")[0][:300]


def _row(cells: Iterable[object]) -> str:
    return f"| {' | '.join(map(_text, cells))} |"


def _text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return "" if value is None else str(value).replace("|", "/").replace("\n", " ")
