"""Records of web crawls: WARC (pages, whose text is extracted) and WET (text that Common Crawl has extracted).

This module needs warcio and, for pages, trafilatura: `pip install warcio trafilatura brotli`. Trafilatura extracts the
main text of a page with a preference for precision, as in FineWeb (Penedo et al. 2024).
"""

import gzip
import importlib.util
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from allam_jax.corpus.record_formats import NOT_UTF8, TOO_LONG, Record
from allam_jax.corpus.text_lines import DamagedFile
from allam_jax.corpus.web_encodings import BadContent, decoded_content, decoded_page
from allam_jax.errors import UserError

SUFFIXES = (".warc", ".warc.gz", ".wet", ".wet.gz")
_HEADER_BYTES = 1 << 20  # more than any real header
_MOST_TAGS = 50_000  # of a page: the time of trafilatura grows with the square of the links and paragraphs
_PAGES = ("text/html", "application/xhtml+xml")


class NotText(str):
    """The reason why a record is not a document, where that is no fault: an image or a redirect."""


class _NoPageError(BadContent):
    """A response is no page; the message says what it is."""


def archive_records(file: Path, *, text_field: str, limit: int) -> Iterator[Record]:
    """Yields records with their text (under `text_field`), `id`, `url` and `date`; else the reason why there is none.

    Skips requests, metadata and other records that only describe records.

    Raises:
        UserError: warcio or trafilatura is not installed.
        DamagedFile: the archive is cut short, or is no archive; all records before that point have been yielded.
    """
    check_installed(file)
    from warcio.archiveiterator import ArchiveIterator

    with gzip.open(file) if file.suffix.lower() == ".gz" else open(file, "rb") as raw:
        stream = _Whole(raw)
        # HTTP headers are parsed record by record here, so that a broken one costs its record only.
        records = ArchiveIterator(stream, no_record_parse=True)
        count = 0
        try:
            while True:
                stream.headers_left = _HEADER_BYTES
                if (record := next(records, None)) is None:
                    break
                stream.headers_left = None
                count += 1
                wanted = record.rec_type in ("response", "conversion")
                read = _read(record, text_field=text_field, limit=limit) if wanted else None
                _read_to_end(record)
                if read is not None:
                    yield read
        except UserError:
            raise
        except Exception as error:  # warcio raises many kinds where headers are broken
            reason = " ".join(str(error).split())[:200]
            raise DamagedFile(f"{file}: damaged or no web archive ({reason}); fetch it again") from None
        if not count and file.stat().st_size:
            raise DamagedFile(f"{file}: no web archive: it has no record; fetch it again")


def check_installed(file: Path) -> None:
    """UserError unless the libraries that read this archive are installed."""
    needed = ("warcio", "trafilatura") if ".warc" in file.name.lower() else ("warcio",)
    if not all(importlib.util.find_spec(name) for name in needed):
        raise UserError(f"{file}: reading web archives needs pip install warcio trafilatura brotli")


class _Whole:
    """A stream that raises an error when its data ends early. Warcio alone takes an early end for the normal end.

    Warcio also holds a line of headers however long it is. `headers_left` bounds what it can read for them.
    """

    def __init__(self, stream: Any):
        self._stream = stream
        self.headers_left: int | None = None
        self.tell = stream.tell

    def read(self, size: int) -> bytes:
        try:
            block = self._stream.read1(size)
        except (EOFError, zlib.error, OSError) as error:
            raise RuntimeError(f"cut short: {error}") from None  # of an EOFError warcio says nothing
        if self.headers_left is not None:
            self.headers_left -= len(block)
            if self.headers_left < 0:
                raise RuntimeError(f"a header of more than {_HEADER_BYTES} bytes")
        return block


def _read_to_end(record: Any) -> None:
    while record.raw_stream.read(_HEADER_BYTES):
        pass
    if record.rec_headers.get_header("Content-Length") is None or record.raw_stream.limit > 0:
        raise EOFError("the last record is not complete")


def _read(record: Any, *, text_field: str, limit: int) -> Record:
    headers = record.rec_headers
    if record.rec_type == "conversion":
        content = record.raw_stream.read(limit + 1)
        if len(content) > limit:
            return TOO_LONG
        try:
            text: str | None = content.decode()
        except UnicodeDecodeError:
            return NOT_UTF8
    else:
        try:
            text = _text_of_page(record, limit=limit)
        except _NoPageError as reason:
            return NotText(reason)
        except BadContent as reason:
            return str(reason)
        if not text:
            return "a page without text"
    names = {"id": "WARC-Record-ID", "url": "WARC-Target-URI", "date": "WARC-Date"}
    return {text_field: text} | {key: headers.get_header(name) for key, name in names.items()}


def _text_of_page(record: Any, *, limit: int) -> str | None:
    """The main text of a page; BadContent with the reason where it has none."""
    from trafilatura import extract
    from warcio.bufferedreaders import ChunkedDataReader
    from warcio.limitreader import LimitReader
    from warcio.statusandheaders import StatusAndHeadersParser

    headers, stream, http = record.rec_headers, record.raw_stream, dict[str, str]()
    status = "200"
    if (headers.get_header("WARC-Target-URI") or "").lower().startswith(("http:", "https:")) and record.length:
        parsed = StatusAndHeadersParser([], verify=False).parse(LimitReader(stream, _HEADER_BYTES))
        status = parsed.get_statuscode()
        http = {name.lower(): value for name, value in reversed(parsed.headers)}
    declared, _, parameters = http.get("content-type", "").partition(";")
    kind = (headers.get_header("WARC-Identified-Payload-Type") or declared).strip().lower()
    if status != "200":
        raise _NoPageError(f"status {status}" if re.fullmatch(r"\d{3}", status) else "status unknown")
    if kind not in _PAGES:
        raise _NoPageError(
            f"of type {kind}" if re.fullmatch(r"[\w.+-]{1,40}/[\w.+-]{1,80}", kind) else "of type unknown"
        )
    if http.get("transfer-encoding", "").strip().lower() == "chunked":
        stream = ChunkedDataReader(stream)
    content = stream.read(limit + 1)
    if len(content) > limit:
        raise BadContent(TOO_LONG)
    content = decoded_content(content, encodings=http.get("content-encoding", ""), limit=limit)
    charset = re.search(r"""charset\s*=\s*["']?([^"';\s]*)""", parameters, re.IGNORECASE)
    page = decoded_page(content, declared=charset.group(1) if charset else "")
    if len(re.findall("<[A-Za-z]", page)) > _MOST_TAGS:
        raise BadContent(f"a page of more than {_MOST_TAGS} tags")
    try:
        return extract(page, favor_precision=True, include_comments=False)
    except Exception:  # lxml and others, on a page of any make
        raise BadContent("a page that cannot be parsed") from None
