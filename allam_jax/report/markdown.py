"""Building blocks of Markdown reports: tables, sections, captioned figures, readable numbers, and text of others."""

import math
import os
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import logging

from allam_jax.files import write_text

# What Markdown, GitHub's dialect of it and HTML take for more than its letters. An underscore inside a word is plain.
_COMMANDS = re.compile(
    r"[\\`*\[\]|~$@]|<(?=[a-z/!?])|&(?=#?\w+;)|:(?=//)|(?<=www)\.|(?<![^\W_])_|_(?![^\W_])|(?<!\w)#(?=\w)",
    re.IGNORECASE,
)
_ENTITIES = {"<": "&lt;", "&": "&amp;"}
# Control characters, and those that are not seen but order, join or hide the text around them; halves of characters.
_UNSEEN = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff\ufeff\ufff9-\ufffb"
    "\U000e0000-\U000e007f]"
)


class Markdown(str):
    """A cell of a table that is Markdown on purpose, such as a link. All other text is shown as it is written."""


def plain(text: str) -> str:
    """Text of others, on one line, so that Markdown and HTML show its letters and do nothing else.

    White space becomes one space; characters that are not seen become their number, `⟨U+202E⟩`.
    """
    text = _COMMANDS.sub(lambda match: _ENTITIES.get(match[0], f"\\{match[0]}"), " ".join(text.split()))
    return _UNSEEN.sub(lambda match: f"⟨U+{ord(match[0]):04X}⟩", text)


def quote(text: str) -> str:
    """Text of others as a quotation on one line."""
    return "> " + re.sub(r"^(\d*)([-+#=>.)])", r"\1\\\2", plain(text))


def number(value: Any) -> str:
    """The text of a value in a table: four significant digits, thousands separators for whole numbers, `–` for None."""
    if value is None:
        return "–"
    if isinstance(value, str):
        return value
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int) or (value.is_integer() and 1000 <= abs(value) < 1e15):
        return f"{value:,.0f}"
    size = abs(float(f"{value:.4g}"))
    if not math.isfinite(value) or size < 1e-3 or size >= 1e9:
        return f"{value:.4g}"
    return f"{value:,.0f}" if size >= 1000 else f"{value:#.4g}"


def table(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str] | Sequence[str] = ()) -> str:
    """A Markdown table with one line per row. Columns that hold text are aligned left, all others right.

    Text is shown as it is written (`plain`), unless it is of type `Markdown`.

    Args:
        rows: key -> value; a missing key gives a dash.
        columns: the keys in order, or a mapping key -> heading; by default all keys, in the order of their first rows.
    """
    columns = columns or list(dict.fromkeys(key for row in rows for key in row))
    headings = dict(columns) if isinstance(columns, Mapping) else {key: key for key in columns}
    keys = list(headings)
    texts = [key for key in keys if any(isinstance(row.get(key), str) for row in rows)]
    lines = [
        _line(headings.values()),
        _line("---" if key in texts else "---:" for key in keys),
        *(_line(number(row.get(key)) for key in keys) for row in rows),
    ]
    return "\n".join(lines)


def section(title: str, *blocks: str, level: int = 2) -> str:
    """A heading of `level` and its blocks (paragraphs, tables, figures), separated by blank lines."""
    return "\n\n".join((f"{'#' * level} {title}", *(block.strip("\n") for block in blocks)))


def figure(path: Path, *, caption: str, report: Path) -> str:
    """A picture with its caption below. The link is relative to the directory of the file `report`."""
    link = os.path.relpath(path, Path(report).parent).replace(os.sep, "/").replace(" ", "%20")
    return f"![{_alternative(caption)}]({link})\n\n*{caption}*"


def code(text: str, *, language: str = "") -> str:
    """A fenced code block in `language`, with a fence that is longer than any in the text."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def duration(seconds: float) -> str:
    """The text of a time span: `4.2 s`, `3 min 05 s` or `2 h 07 min`."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def write_report(path: Path, *, title: str, sections: Sequence[str]) -> None:
    """Writes a Markdown file: the title, the time of writing (UTC) and the sections. Logs where it lies."""
    written = time.strftime("Written %Y-%m-%d %H:%M UTC.", time.gmtime())
    write_text(path, "\n\n".join((f"# {title}", written, *sections)) + "\n")
    logging.info("report: %s", path)


def _line(cells) -> str:
    return "| " + " | ".join(cell if isinstance(cell, Markdown) else plain(cell) for cell in cells) + " |"


def _alternative(text: str) -> str:
    return text.replace("[", "(").replace("]", ")").replace("\n", " ")
