"""From a file's bytes to its lines and units, in UTF-8 and bounded memory, whatever the compression and encoding.

Lines and units longer than the limit come out as None; their bytes are not kept.
"""

import bz2
import codecs
import gzip
import lzma
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from allam_jax.errors import UserError

# Byte order marks. That of UTF-16 begins that of UTF-32, which therefore comes first.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_READ_BYTES = 1 << 20
# A block of Zstandard's can be 4 bytes long and hold 128 KiB, so that this much never grows to more than 128 MiB.
_ZSTD_BYTES = 1 << 12
_ZSTD_WINDOW = 1 << 31  # the largest that `zstd --long=31` writes


class DamagedFile(UserError):
    """A file that ends early or is not what its name says. The message names the file."""


def lines_of_file(file: Path, *, limit: int) -> Iterator[bytes | None]:
    """The lines of a file without their ends; None for each line of more than `limit` bytes.

    Raises:
        DamagedFile: compressed data is damaged or ends early, or a character of UTF-16 or UTF-32 does.
        UserError: the file cannot be read.
    """
    pending: list[bytes] = []  # the pieces of a line that goes on in the next block
    held = 0  # the length of that line so far
    try:
        for block in _utf8(_blocks(file)):
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
    except (EOFError, zlib.error, gzip.BadGzipFile, lzma.LZMAError, UnicodeDecodeError) as error:
        raise DamagedFile(f"{file}: damaged or cut short ({error}); fetch it again") from None
    except OSError as error:
        if error.errno is None:  # bz2 says so where the data is not its own
            raise DamagedFile(f"{file}: damaged or cut short ({error}); fetch it again") from None
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
        yield first
        yield from blocks
        return
    # Half of a surrogate pair becomes bytes that are not UTF-8, and so a bad record of its own.
    decoder = codecs.getincrementaldecoder(encoding)("surrogatepass")
    yield decoder.decode(first).encode("utf-8", "surrogatepass")
    for block in blocks:
        yield decoder.decode(block).encode("utf-8", "surrogatepass")
    decoder.decode(b"", final=True)


def _blocks(file: Path) -> Iterator[bytes]:
    if file.suffix.lower() == ".zst":
        yield from _zstd_blocks(file)
        return
    with COMPRESSIONS.get(file.suffix.lower(), _plain)(file) as stream:
        # `read` would lose the last block of data that is cut short; `read1` returns what there is.
        while block := stream.read1(_READ_BYTES):
            yield block


def _plain(file: Path) -> BinaryIO:
    return open(file, "rb")


def _zstd_blocks(file: Path) -> Iterator[bytes]:
    """Decompresses one frame after another. The library's own stream reader ends silently inside a cut frame."""
    import zstandard

    def new() -> Any:
        return zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW).decompressobj()

    decompressor, fed = new(), False
    try:
        with open(file, "rb") as stream:
            while block := stream.read(_ZSTD_BYTES):
                while block:
                    if decompressor.eof:
                        decompressor, fed = new(), False
                    yield decompressor.decompress(block)
                    fed, block = True, decompressor.unused_data
    except zstandard.ZstdError as error:
        raise EOFError(str(error)) from None
    if fed and not decompressor.eof:
        raise EOFError("the last frame is not complete")


# Suffix -> what opens such a file.
COMPRESSIONS: dict[str, Callable[[Path], Any]] = {
    ".gz": gzip.open,
    ".zst": _zstd_blocks,
    ".bz2": bz2.open,
    ".xz": lzma.open,
}
