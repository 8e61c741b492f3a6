"""The bytes of a compressed file, stream by stream.

A file can hold several streams (members, frames), one after another. Python's own readers of xz and bzip2 take a
damaged later stream for rubbish after the end, and drop it without a word. Here everything after a stream is another
stream, or the padding that the format allows, or damage.
"""

import bz2
import dataclasses
import lzma
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

_PLAIN_BYTES = 1 << 20
_PIECE_BYTES = 1 << 20  # of output
# What follows a stream is copied once for each stream in a block, so blocks are small.
_BLOCK_BYTES = 1 << 16
# A block of Zstandard's can be 4 bytes long and hold 128 KiB, so that this much never grows to more than 128 MiB.
_ZSTD_BLOCK_BYTES = 1 << 12
_ZSTD_WINDOW = 1 << 31  # the largest that `zstd --long=31` writes


class DamagedStreamError(Exception):
    """Compressed data is damaged, or ends early."""


@dataclasses.dataclass(frozen=True)
class Format:
    """A way to compress.

    Attributes:
        new: makes the decompressor of one stream.
        pieces: yields what a decompressor makes of a block, in pieces of bounded size.
        padding: zeros may follow a stream in multiples of this number; 0: none may.
        block_bytes: how much is read at once.
    """

    new: Callable[[], Any]
    pieces: Callable[[Any, bytes], Iterator[bytes]]
    padding: int
    block_bytes: int = _BLOCK_BYTES


def pieces_of_file(file: Path) -> Iterator[tuple[bytes, bool]]:
    """Yields (bytes, whether a stream ends with them). A file without one of these suffixes has no streams.

    Raises DamagedStreamError after all bytes before the damage, and OSError if the file cannot be read.
    """
    form = COMPRESSIONS.get(file.suffix.lower())
    with open(file, "rb") as stream:
        if form is None:
            while block := stream.read(_PLAIN_BYTES):
                yield block, False
            return
        decompressor, fed, zeros, streams = form.new(), False, 0, 0
        while block := stream.read(form.block_bytes):
            while block:
                if streams and not fed and form.padding and block[0] == 0:
                    rest = block.lstrip(b"\0")
                    zeros, block = zeros + len(block) - len(rest), rest
                    continue
                if not fed:
                    _check_padding(zeros, form)
                    zeros = 0
                for piece in _undamaged(form.pieces(decompressor, block)):
                    yield piece, False
                fed, block = True, decompressor.unused_data
                if decompressor.eof:
                    yield b"", True
                    decompressor, fed, streams = form.new(), False, streams + 1
        if fed:
            raise DamagedStreamError("the last stream is not complete")
        _check_padding(zeros, form)


def _check_padding(zeros: int, form: Format) -> None:
    if zeros and zeros % form.padding:
        raise DamagedStreamError(f"{zeros} zeros between streams, which is no multiple of {form.padding}")


def _undamaged(pieces: Iterator[bytes]) -> Iterator[bytes]:
    try:
        yield from pieces
    except (zlib.error, lzma.LZMAError, EOFError, OSError) as error:  # OSError: bzip2
        raise DamagedStreamError(str(error)) from None


def _gzip_pieces(decompressor: Any, block: bytes) -> Iterator[bytes]:
    while True:
        piece = decompressor.decompress(block, _PIECE_BYTES)
        block = decompressor.unconsumed_tail
        yield piece
        if decompressor.eof or (len(piece) < _PIECE_BYTES and not block):
            return


def _pieces(decompressor: Any, block: bytes) -> Iterator[bytes]:
    yield decompressor.decompress(block, _PIECE_BYTES)
    while not (decompressor.eof or decompressor.needs_input):
        yield decompressor.decompress(b"", _PIECE_BYTES)


def _new_zstd() -> Any:
    import zstandard

    return zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW).decompressobj()


def _zstd_pieces(decompressor: Any, block: bytes) -> Iterator[bytes]:
    import zstandard

    try:
        yield decompressor.decompress(block)
    except zstandard.ZstdError as error:
        raise EOFError(str(error)) from None


# Suffix -> how such a file is compressed.
COMPRESSIONS: dict[str, Format] = {
    ".gz": Format(lambda: zlib.decompressobj(16 + zlib.MAX_WBITS), _gzip_pieces, padding=1),
    ".zst": Format(_new_zstd, _zstd_pieces, padding=0, block_bytes=_ZSTD_BLOCK_BYTES),
    ".bz2": Format(bz2.BZ2Decompressor, _pieces, padding=0),
    ".xz": Format(lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ), _pieces, padding=4),
}
