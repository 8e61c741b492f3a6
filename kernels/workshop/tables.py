"""Markdown tables of records."""

from collections.abc import Iterable, Mapping, Sequence


def head(columns: Sequence[str]) -> str:
    """The two lines that start a table."""
    return f"{row(columns)}\n|{'---|' * len(columns)}"


def row(cells: Iterable[object]) -> str:
    """One line; floats with four digits, None as an empty cell."""
    return f"| {' | '.join(map(_text, cells))} |"


def of_records(records: Sequence[Mapping[str, object]]) -> str:
    """A table with a column for every key, in the order in which the keys first come."""
    columns = list(dict.fromkeys(key for record in records for key in record))
    return "\n".join([head(columns), *(row(record.get(column) for column in columns) for record in records)])


def _text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return "" if value is None else str(value).replace("|", "/").replace("\n", " ")
