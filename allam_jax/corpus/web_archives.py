"""Records of web crawls: WARC (pages, whose text is extracted) and WET (text that Common Crawl has extracted).

This module needs warcio and, for pages, trafilatura: `pip install warcio trafilatura`. Trafilatura extracts the main
text of a page with a preference for precision, as in FineWeb (Penedo et al. 2024).
"""

import gzip
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from allam_jax.errors import UserError

SUFFIXES = (".warc", ".warc.gz", ".wet", ".wet.gz")
_PAGES = ("text/html", "application/xhtml+xml")
_CHARSET = re.compile(rb"""<meta[^>]{0,200}?charset\s*=\s*["']?([\w-]+)""", re.IGNORECASE)
_HEAD_BYTES = 4096  # the start of a page, in which its character set is declared


class NotText(str):
    """The reason why a record is not a document, where that is no fault: an image or a redirect."""


class DamagedArchive(Exception):
    """The archive is damaged at some point; the message says how."""


def archive_records(file: Path, *, text_field: str) -> Iterator[dict[str, Any] | str]:
    """Yields records with their text (under `text_field`), `id`, `url` and `date`; else the reason why there is none.

    Skips requests, metadata and other records that only describe records.

    Raises:
        UserError: warcio or trafilatura is not installed.
        DamagedArchive: the archive is cut short, or is no archive; all records before that point have been yielded.
    """
    try:
        from warcio.archiveiterator import ArchiveIterator
        from warcio.exceptions import ArchiveLoadFailed
    except ImportError:
        raise UserError(f"{file}: reading web archives needs warcio; pip install warcio trafilatura") from None
    with gzip.open(file) if file.suffix == ".gz" else open(file, "rb") as stream:
        count = 0
        try:
            for record in ArchiveIterator(_Whole(stream)):
                count += 1
                if record.rec_type in ("response", "conversion"):
                    yield _read(record, text_field=text_field)
        except (ArchiveLoadFailed, EOFError, OSError, zlib.error) as error:
            raise DamagedArchive(f"damaged or no web archive ({' '.join(str(error).split())})") from None
        if not count and file.stat().st_size:
            raise DamagedArchive("no web archive: it has no record")


class _Whole:
    """A stream that raises an error when its data ends early. Warcio alone takes an early end for the normal end."""

    def __init__(self, stream: Any):
        self._stream = stream
        self.tell = stream.tell

    def read(self, size: int) -> bytes:
        try:
            return self._stream.read1(size)
        except (EOFError, zlib.error, OSError) as error:
            raise DamagedArchive(f"damaged or cut short ({' '.join(str(error).split())})") from None


def _read(record: Any, *, text_field: str) -> dict[str, Any] | str:
    content = record.content_stream().read()
    record.raw_stream.read()
    headers = record.rec_headers
    if headers.get_header("Content-Length") is None or record.raw_stream.limit > 0:
        raise EOFError("the last record is not complete")
    if record.rec_type == "conversion":
        try:
            text = content.decode("utf-8")
        except UnicodeDecodeError:
            return "with invalid UTF-8"
    else:
        http = record.http_headers
        status = http.get_statuscode() if http else "200"
        declared, _, parameters = (http.get_header("Content-Type") or "" if http else "").partition(";")
        kind = headers.get_header("WARC-Identified-Payload-Type") or declared.strip().lower()
        if status != "200" or kind not in _PAGES:
            return NotText(f"status {status}" if status != "200" else f"of type {kind or 'unknown'}")
        page = _decoded(content, declared=parameters.partition("charset=")[2].strip(" \"'"))
        if page is None:
            return "with an unknown character set"
        try:
            from trafilatura import extract
        except ImportError:
            raise UserError("the text of web pages needs trafilatura; pip install warcio trafilatura") from None
        text = extract(page, favor_precision=True, include_comments=False)
        if not text:
            return "a page without text"
    names = {"id": "WARC-Record-ID", "url": "WARC-Target-URI", "date": "WARC-Date"}
    return {text_field: text} | {key: headers.get_header(name) for key, name in names.items()}


def _decoded(content: bytes, *, declared: str) -> str | None:
    """Decodes a page by the first that fits: the charset of its HTTP header, the one it declares itself, UTF-8."""
    inside = _CHARSET.search(content[:_HEAD_BYTES])
    for charset in (declared, inside.group(1).decode("ascii", "replace") if inside else "", "utf-8"):
        try:
            if charset:
                return content.decode(charset)
        except (UnicodeDecodeError, LookupError):
            continue
    return None
