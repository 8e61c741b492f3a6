"""The text of a web page as browsers read it: HTTP's content encodings, then the WHATWG Encoding Standard.

The standard's labels come from the package webencodings: on the web latin-1 means Windows-1252, and gb2312 means GBK.
Python's codecs differ from it in a few characters, which `_table` and `_as_browsers` restore.
"""

import codecs
import functools
import gzip
import io
import re
import zlib
from collections.abc import Callable
from typing import Any

import webencodings
import zstandard

from allam_jax.corpus.record_formats import NOT_UTF8, NULS, TOO_LONG

# Encodings of the standard for which webencodings names a narrower codec of Python's.
_WIDER = {"gbk": "gb18030", "x-user-defined": "cp1252"}
_HEAD_BYTES = 4096  # the start of a page, in which its encoding is declared
_DECLARED = re.compile(
    rb"""<(?:meta[^>]{0,200}?charset|\?xml[^>]{0,200}?encoding)\s*=\s*["']?([\w:.-]+)""", re.IGNORECASE
)
_MARKS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16le"), (codecs.BOM_UTF16_BE, "utf-16be"))
_SINGLE_BYTE = ("windows", "iso-8859", "koi8", "mac", "x-mac", "ibm", "x-user")  # how the names of these begin
# Bytes that Python's codecs read otherwise, or not at all.
_CORRECTED = {"koi8-u": {0xAE: "ў", 0xBE: "Ў"}, "windows-1255": {0xCA: "\u05ba"}}
# Characters of the edition of 2022, which the standard follows, for those of private use in Python's older one. A3 A0
# is a wide space on the web.
_GB18030_2022 = {0xE5E5: 0x3000} | dict(
    zip(
        (*range(0xE78D, 0xE797), 0xE81E, 0xE826, 0xE82B, 0xE82C, 0xE832, 0xE843, 0xE854, 0xE864),
        (0xFE10, 0xFE12, 0xFE11, *range(0xFE13, 0xFE1A), *range(0x9FB4, 0x9FBC)),
        strict=True,
    )
)
_OLD_GB18030 = re.compile("[" + "".join(map(chr, _GB18030_2022)) + "]")
_NOT_SHIFT_JIS = re.compile("[\uf8f0-\uf8f3]")  # what Windows makes of the bytes A0, FD, FE and FF
_CHUNK = re.compile(rb"(?:\r?\n)?([0-9A-Fa-f]{1,12})[ \t]*(?:;[^\r\n]{0,200})?\r?\n")
_ZSTD_BYTES = 1 << 12


class BadContent(Exception):
    """A page cannot be decoded; the message is the reason."""


def decoded_content(content: bytes, *, encodings: str, limit: int) -> bytes:
    """Undoes the content encodings of an HTTP header. Content that is not encoded after all stays as it is.

    BadContent where an encoding is unknown or broken, or where more than `limit` bytes come out.
    """
    for name in map(str.strip, reversed(encodings.lower().split(","))):
        if name not in ("", "identity", *_DECODERS):
            raise BadContent("with an unknown content encoding")
        try:
            content = _DECODERS[name](content, limit) if name in _DECODERS else content
        except (zlib.error, zstandard.ZstdError, ValueError, EOFError, gzip.BadGzipFile):
            # Crawlers keep the header when they store the content decoded.
            if not content.lstrip().startswith(b"<"):
                raise BadContent("with broken content encoding") from None
        if len(content) > limit:
            raise BadContent(TOO_LONG)
    return content


def decoded_page(content: bytes, *, declared: str) -> str:
    """The text of a page by the first that fits: its byte order mark, `declared` (in HTTP), its own words, UTF-8.

    A character that is cut off at the end is left out. BadContent where none fits.
    """
    labels = [declared, "", "utf-8"]
    if inside := _DECLARED.search(content[:_HEAD_BYTES]):
        # What declares itself in ASCII is not UTF-16.
        labels[1] = re.sub("(?i)^utf-16.*", "utf-8", inside.group(1).decode("ascii", "replace"))
    for mark, name in _MARKS:
        if content.startswith(mark):
            labels, content = [name], content[len(mark) :]
            break
    known = {label: webencodings.lookup(label.encode("ascii", "replace").decode()) for label in labels if label}
    problem = ""
    for encoding in known.values():
        try:
            text = _decode(content, encoding.name) if encoding else None
        except UnicodeError:
            continue
        if text is not None and "\0" in text[:_HEAD_BYTES]:
            problem = NULS
        elif text is not None:
            return text.replace("\0", "")
    if not problem and None in known.values():
        problem = "with an unknown character set"
    raise BadContent(problem or ("not in the character set that it names" if len(known) > 1 else NOT_UTF8))


def _decode(content: bytes, name: str) -> str | None:
    """None for the encodings that the standard refuses, because they can hide scripts."""
    if name == "replacement":
        return None
    if name.startswith(_SINGLE_BYTE):
        return codecs.charmap_decode(content, "strict", _table(name))[0]
    codec = _WIDER.get(name) or webencodings.lookup(name).codec_info.name
    text = codecs.getincrementaldecoder(codec)("whatwg").decode(content)
    if codec == "gb18030" and _OLD_GB18030.search(text):
        return text.translate(_GB18030_2022)
    if codec == "cp932" and (wrong := _NOT_SHIFT_JIS.search(text)):
        raise UnicodeError(f"{wrong[0]!r} is one byte that the standard does not have")
    return text


@functools.cache
def _table(name: str) -> str:
    """The characters of the 256 bytes of an encoding; U+FFFE for those that mean none."""
    codec = _WIDER.get(name) or webencodings.lookup(name).codec_info.name
    characters = [bytes([byte]).decode(codec, "replace").replace("\ufffd", "\ufffe") for byte in range(256)]
    for byte in range(0x80, 0xA0):  # where Windows has none, the standard has the control characters of latin-1
        characters[byte] = chr(byte) if characters[byte] == "\ufffe" else characters[byte]
    for byte, character in _CORRECTED.get(name, {}).items():
        characters[byte] = character
    return "".join(characters)


def _as_browsers(error: UnicodeError) -> tuple[str, int]:
    """What the standard has where Python's codecs of several bytes have nothing."""
    assert isinstance(error, UnicodeDecodeError)
    place = error.start
    pair = error.object[place : place + 2]
    if error.encoding == "gb18030" and pair[0] == 0x80:
        return "€", place + 1
    if error.encoding == "euc_jp" and len(pair) == 2 and min(pair) >= 0xA1:
        # The rows that NEC and IBM have added: the same cells in Shift_JIS.
        row, cell = pair[0] - 0xA1, pair[1] - 0xA1 + 94 * ((pair[0] - 0xA1) % 2)
        lead = row // 2 + (0x81 if row < 62 else 0xC1)
        return bytes([lead, cell + (0x40 if cell < 63 else 0x41)]).decode("cp932"), place + 2
    raise error


codecs.register_error("whatwg", _as_browsers)


def without_chunks(content: bytes) -> bytes:
    """Undoes HTTP's chunked transfer. Content that has no chunks after all stays as it is; BadContent if it is cut."""
    found: list[bytes] = []
    place = 0
    while head := _CHUNK.match(content, place):
        size, start = int(head[1], 16), head.end()
        if not size:
            return b"".join(found)
        found.append(content[start : start + size])
        place = start + size
    if not place:  # crawlers keep the header when they store the content without chunks
        return content
    raise BadContent("with broken chunks")


def _inflated(content: bytes, limit: int) -> bytes:
    try:
        return _whole(zlib.decompressobj(), content, limit)
    except zlib.error:  # many servers send no header of zlib
        return _whole(zlib.decompressobj(-zlib.MAX_WBITS), content, limit)


def _whole(decompressor: Any, content: bytes, limit: int) -> bytes:
    found: bytes = decompressor.decompress(content, limit + 1)
    if len(found) <= limit and not decompressor.eof:
        raise EOFError("cut short")
    return found


def _gunzipped(content: bytes, limit: int) -> bytes:
    with gzip.GzipFile(fileobj=io.BytesIO(content)) as members:
        return members.read(limit + 1)


def _zstd(content: bytes, limit: int) -> bytes:
    found, place, decompressor = bytearray(), 0, None
    while place < len(content) and len(found) <= limit:
        if decompressor is None or decompressor.eof:
            decompressor = zstandard.ZstdDecompressor().decompressobj()
        block = content[place : place + _ZSTD_BYTES]
        found += decompressor.decompress(block)
        place += len(block) - len(decompressor.unused_data)
    if len(found) <= limit and decompressor is not None and not decompressor.eof:
        raise EOFError("cut short")
    return bytes(found)


def _brotli(content: bytes, limit: int) -> bytes:
    try:
        import brotli
    except ImportError:
        raise BadContent("compressed with Brotli; pip install -U brotli") from None
    if not hasattr(brotli.Decompressor, "can_accept_more_data"):  # it cannot limit what comes out
        raise BadContent("compressed with Brotli; pip install -U brotli")
    try:
        decompressor = brotli.Decompressor()
        found: bytes = decompressor.process(content, output_buffer_limit=limit + 1)
        if len(found) <= limit and not decompressor.is_finished():
            raise EOFError("cut short")
        return found
    except brotli.error as error:
        raise ValueError(str(error)) from None


_DECODERS: dict[str, Callable[[bytes, int], bytes]] = {
    "gzip": _gunzipped,
    "x-gzip": _gunzipped,
    "deflate": _inflated,
    "br": _brotli,
    "zstd": _zstd,
}
