"""Records of crawls: WARC (pages, whose text is extracted) and WET (text already extracted by Common Crawl).

Needs warcio and, for pages, trafilatura: `pip install warcio trafilatura`. The main text of a page is taken as in
FineWeb (Penedo et al. 2024), by trafilatura with preference for precision.
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
_HEAD_BYTES = 4096  # of a page, in which its character set is declared


class NotText(str):
    """Why a record is no document and no fault either: an image, a redirect."""


class DamagedArchive(Exception):
    """The archive cannot be read on."""


def archive_records(file: Path, *, text_field: str) -> Iterator[dict[str, Any] | str]:
    """A record with its text (under `text_field`), `id`, `url` and `date`; else the reason why there is none.

    Requests, metadata and the like, which only describe other records, are passed over.

    Raises:
      UserError: warcio or trafilatura is not installed.
      DamagedArchive: The archive is cut short or none at all; what came before has been given.
    """
    try:
        from warcio.archiveiterator import ArchiveIterator
        from warcio.exceptions import ArchiveLoadFailed
    except ImportError:
        raise UserError(f"{file}: reading web archives needs warcio; pip install warcio trafilatura") from None
    with gzip.open(file) if file.suffix == ".gz" else open(file, "rb") as stream:
        count = 0
        iterator = ArchiveIterator(_Whole(stream))
        try:
            for record in iterator:
                count += 1
                if record.rec_type not in ("response", "conversion"):
                    continue
                found = _text_of(record)
                if isinstance(found, str) and not isinstance(found, NotText | _Reason):
                    headers = record.rec_headers
                    yield {
                        text_field: found,
                        "id": headers.get_header("WARC-Record-ID"),
                        "url": headers.get_header("WARC-Target-URI"),
                        "date": headers.get_header("WARC-Date"),
                    }
                else:
                    yield found
        except (ArchiveLoadFailed, EOFError, OSError, zlib.error) as error:
            raise DamagedArchive(f"damaged or no web archive ({' '.join(str(error).split())})") from None
        if not count and file.stat().st_size:
            raise DamagedArchive("no web archive: not a single record")


class _Whole:
    """A stream whose early end is an error: warcio takes a gzip member that is cut off, or an EOFError, for the end."""

    def __init__(self, stream: Any):
        self._stream = stream
        self.tell = stream.tell

    def read(self, size: int) -> bytes:
        try:
            return self._stream.read1(size)
        except (EOFError, zlib.error, OSError) as error:
            raise DamagedArchive(f"damaged or cut short ({' '.join(str(error).split())})") from None


class _Reason(str):
    """Why a record that should hold text holds none."""


def _text_of(record: Any) -> str:
    content = record.content_stream().read()
    record.raw_stream.read()
    if record.rec_headers.get_header("Content-Length") is None or record.raw_stream.limit > 0:
        raise EOFError("the last record is not complete")
    if record.rec_type == "conversion":
        try:
            return content.decode("utf-8")
        except UnicodeDecodeError:
            return _Reason("with invalid UTF-8")
    headers = record.http_headers
    status = headers.get_statuscode() if headers else "200"
    kind, _, parameters = (headers.get_header("Content-Type") or "" if headers else "").partition(";")
    kind = record.rec_headers.get_header("WARC-Identified-Payload-Type") or kind.strip().lower()
    if status != "200" or kind not in _PAGES:
        return NotText(f"status {status}" if status != "200" else f"of type {kind or 'unknown'}")
    page = _decoded(content, declared=parameters.partition("charset=")[2].strip(" \"'"))
    if page is None:
        return _Reason("with an unknown character set")
    try:
        from trafilatura import extract
    except ImportError:
        raise UserError("the text of web pages needs trafilatura; pip install warcio trafilatura") from None
    return extract(page, favor_precision=True, include_comments=False) or _Reason("a page without text")


def _decoded(content: bytes, *, declared: str) -> str | None:
    """The page by the character set of its HTTP header, else of its own declaration, else UTF-8; None if none fits."""
    inside = _CHARSET.search(content[:_HEAD_BYTES])
    for charset in (declared, inside.group(1).decode("ascii", "replace") if inside else "", "utf-8"):
        try:
            if charset:
                return content.decode(charset)
        except (UnicodeDecodeError, LookupError):
            continue
    return None
