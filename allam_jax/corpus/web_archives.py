"""Records of web crawls: WARC (pages, whose text is extracted) and WET (text that Common Crawl has extracted).

Pages need trafilatura: `pip install trafilatura brotli`. It extracts the main text of a page with a preference for
precision, as in FineWeb (Penedo et al. 2024).
"""

import importlib.util
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from allam_jax.corpus.normalise import normalise
from allam_jax.corpus.record_formats import NOT_UTF8, TOO_LONG, Record
from allam_jax.corpus.warc_records import HEADER_BYTES, WarcRecord, parse_headers, split_header, warc_records
from allam_jax.corpus.web_encodings import BadContent, decoded_content, decoded_page, without_chunks
from allam_jax.errors import UserError

SUFFIXES = (".warc", ".warc.gz", ".wet", ".wet.gz")
_MOST_TAGS = 50_000  # of a page: the time of trafilatura grows with the square of the links and paragraphs
_PAGES = ("text/html", "application/xhtml+xml")
_ABOUT_OTHERS = ("warcinfo", "request", "metadata")  # these only describe records


class NotText(str):
    """The reason why a record is not a document, where that is no fault: an image or a redirect."""


class _NoPageError(BadContent):
    """A response is no page; the message says what it is."""


def archive_records(file: Path, *, text_field: str, limit: int) -> Iterator[Record]:
    """Yields records with their text (under `text_field`), `id`, `url` and `date`; else the reason why there is none.

    Skips requests, metadata and other records that only describe records.

    Raises:
        UserError: trafilatura is not installed.
        DamagedFile: the archive is cut short, or is no archive; all records before that point have been yielded.
    """
    check_installed(file)
    for record in warc_records(file, limit=limit + HEADER_BYTES):
        if isinstance(record, str):
            yield record
        elif record.kind not in _ABOUT_OTHERS:
            yield _read(record, text_field=text_field, limit=limit)


def check_installed(file: Path) -> None:
    """UserError unless the library that reads the pages of this archive is installed."""
    if ".warc" in file.name.lower() and not importlib.util.find_spec("trafilatura"):
        raise UserError(f"{file}: reading web archives needs pip install trafilatura brotli")


def _read(record: WarcRecord, *, text_field: str, limit: int) -> Record:
    headers, content = record.headers, record.content
    if record.kind == "continuation" or "warc-segment-number" in headers:
        return NotText("a part of a record that was cut in segments")
    if record.kind not in ("response", "resource", "conversion"):
        return NotText("of type revisit" if record.kind == "revisit" else "of an unknown WARC-Type")
    if content is None or (record.kind == "conversion" and len(content) > limit):
        return TOO_LONG
    if record.kind == "conversion":
        try:
            text: str | None = content.decode()
        except UnicodeDecodeError:
            return NOT_UTF8
    else:
        try:
            text = _text_of_page(record.kind, headers, content, limit=limit)
        except _NoPageError as reason:
            return NotText(reason)
        except BadContent as reason:
            return str(reason)
        if not text:
            return "a page without text"
    return {
        text_field: text,
        "id": headers.get("warc-record-id"),
        "url": _address(headers) or None,
        "date": headers.get("warc-date"),
    }


def _address(headers: Mapping[str, str]) -> str:
    return headers.get("warc-target-uri", "").removeprefix("<").removesuffix(">")  # wget writes it in brackets


def _text_of_page(kind: str, headers: Mapping[str, str], content: bytes, *, limit: int) -> str | None:
    """The main text of a page; BadContent with the reason where it has none."""
    from trafilatura import bare_extraction

    http = dict[str, str]()
    if kind == "resource":  # the file itself, without a header of HTTP
        http = {"content-type": headers.get("content-type", "")}
    elif _address(headers).lower().startswith(("http:", "https:")) and content:
        head, content = split_header(content)
        first, http = parse_headers(head)
        status = re.match(r"HTTP/\S+\s+(\d{3})(?!\d)", first)
        if not status or status[1] != "200":
            raise _NoPageError(f"status {status[1]}" if status else "status unknown")
    declared, _, parameters = http.get("content-type", "").partition(";")
    type_ = (headers.get("warc-identified-payload-type") or declared).strip().lower()
    if type_ not in _PAGES:
        named = re.fullmatch(r"[\w.+-]{1,40}/[\w.+-]{1,80}", type_)
        raise _NoPageError(f"of type {type_}" if named else "of type unknown")
    if http.get("transfer-encoding", "").strip().lower() == "chunked":
        content = without_chunks(content)
    if len(content) > limit:
        raise BadContent(TOO_LONG)
    content = decoded_content(content, encodings=http.get("content-encoding", ""), limit=limit)
    charset = re.search(r"""charset\s*=\s*["']?([^"';\s]*)""", parameters, re.IGNORECASE)
    page = decoded_page(content, declared=charset.group(1) if charset else "")
    if len(re.findall("<[A-Za-z]", page)) > _MOST_TAGS:
        raise BadContent(f"a page of more than {_MOST_TAGS} tags")
    try:
        found = bare_extraction(page, favor_precision=True, include_comments=False)
        text = getattr(found, "text", None)
        return normalise(text) if text else None
    except Exception:  # lxml and others, on a page of any make
        raise BadContent("a page that cannot be parsed") from None
