"""From a file's bytes to its lines and units, in UTF-8 and bounded memory, whatever the compression and encoding.

Lines and units longer than the limit come out as None; their bytes are not kept.
"""

import codecs
from collections.abc import Iterable, Iterator
from pathlib import Path

from allam_jax.corpus.compressed_streams import DamagedStreamError, pieces_of_file
from allam_jax.errors import UserError

# Byte order marks. That of UTF-16 begins that of UTF-32, which therefore comes first.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
# Control characters that no text has: all of ASCII's except white space and escape (which colours a terminal).
CONTROLS = bytes({*range(0x20), 0x7F} - {*b"\t\n\v\f\r\x1b\x1c\x1d\x1e\x1f"})
_CONTROLS_OF_UTF_16 = 0.2  # share of bytes; one of two bytes of a letter in Latin, Cyrillic, Arabic, Thai, ... is one


class DamagedFile(UserError):
    """A file that ends early or is not what its name says. The message names the file."""


def lines_of_file(file: Path, *, limit: int, any_end: bool = False) -> Iterator[bytes | None]:
    """The lines of a file without their ends; None for each line of more than `limit` bytes.

    Lines end with a line feed; with `any_end` also with a carriage return (old Macintosh) or both (Windows).

    Raises:
        DamagedFile: compressed data is damaged or ends early, or a character of UTF-16 or UTF-32 does; the text is
            UTF-16 without a byte order mark.
        UserError: the file cannot be read.
    """
    pending: list[bytes] = []  # the pieces of a line that goes on in the next block
    held = 0  # the length of that line so far
    try:
        blocks = _utf8(piece for piece, _ in pieces_of_file(file))
        for block in _with_line_feeds(blocks) if any_end else blocks:
            *lines, last = block.split(b"\n")
            if lines:
                yield b"".join([*pending, lines[0]]) if held + len(lines[0]) <= limit else None
                # A block is shorter than any sensible limit; a smaller limit costs a comparison for each line.
                yield from lines[1:] if limit >= len(block) else [x if len(x) <= limit else None for x in lines[1:]]
                pending, held = [], 0
            held += len(last)
            if held <= limit:
                pending.append(last)
            else:
                pending.clear()
    except (DamagedStreamError, UnicodeDecodeError) as error:
        raise DamagedFile(f"{file}: damaged or cut short ({error}); fetch it again") from None
    except _UnmarkedError as error:
        raise DamagedFile(f"{file}: {error} without a byte order mark; convert it to UTF-8") from None
    except OSError as error:
        raise UserError(f"{file}: cannot read ({error.strerror or error})") from None
    if held:
        yield b"".join(pending) if held <= limit else None


def units_of_lines(lines: Iterable[bytes | None], *, unit: str, limit: int) -> Iterator[bytes | None]:
    """Joins lines to the documents of a text: each `line` that is not blank, each `paragraph`, or the whole `file`."""
    if unit == "line":
        yield from (line for line in lines if line is None or line.strip())
        return
    held: list[bytes] = []
    size = -1  # of the unit so far, with a newline between its lines; -1: it has none
    for line in lines:
        if unit == "paragraph" and line is not None and not line.strip():
            if size >= 0:
                yield b"\n".join(held) if size <= limit else None
            held, size = [], -1
            continue
        size += limit + 2 if line is None else len(line) + 1
        if line is not None and size <= limit:
            held.append(line)
        else:
            held.clear()
    if size >= 0:
        yield b"\n".join(held) if size <= limit else None


def _utf8(blocks: Iterator[bytes]) -> Iterator[bytes]:
    """The same text as UTF-8 without a byte order mark; a mark says how it is encoded, and otherwise it is UTF-8."""
    first = b""
    while len(first) < 4 and (more := next(blocks, None)) is not None:
        first += more
    mark, encoding = next(((mark, name) for mark, name in _MARKS if first.startswith(mark)), (b"", "utf-8"))
    first = first[len(mark) :]
    if encoding == "utf-8":
        if not mark:
            _check_unmarked(first)
        yield first
        yield from blocks
        return
    # Half of a surrogate pair becomes bytes that are not UTF-8, and so a bad record of its own.
    decoder = codecs.getincrementaldecoder(encoding)("surrogatepass")
    yield decoder.decode(first).encode("utf-8", "surrogatepass")
    for block in blocks:
        yield decoder.decode(block).encode("utf-8", "surrogatepass")
    decoder.decode(b"", final=True)


class _UnmarkedError(Exception):
    """A text is in UTF-16 and does not say so; the message is the encoding."""


def _check_unmarked(start: bytes) -> None:
    """Raises where the start of a text is UTF-16: all its zeros are in even or all in odd places.

    A file of UTF-8 with some zeros passes: its bad records are counted one by one.
    """
    nuls = start.count(0)
    if not nuls:
        return
    even = start[::2].count(0)
    controls = len(start) - len(start.translate(None, CONTROLS))
    if even not in (0, nuls) or (controls < _CONTROLS_OF_UTF_16 * len(start) and _is_utf8(start)):
        return
    encoding = "utf-16-be" if even else "utf-16-le"
    try:
        text = codecs.getincrementaldecoder(encoding)().decode(start)
    except UnicodeDecodeError:
        return
    if "\0" not in text:
        raise _UnmarkedError(encoding.upper())


def _is_utf8(start: bytes) -> bool:
    try:
        codecs.getincrementaldecoder("utf-8")().decode(start)
    except UnicodeDecodeError:
        return False
    return True


def _with_line_feeds(blocks: Iterator[bytes]) -> Iterator[bytes]:
    """The same text with a line feed for each line end of Windows and of old Macintoshes."""
    held = b""  # a carriage return, whose line feed may come in the next block
    for block in blocks:
        if held or b"\r" in block:
            block = held + block
            held = b"\r" if block.endswith(b"\r") else b""
            block = block.removesuffix(held).replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        yield block
    if held:
        yield b"\n"
