"""The records of a WARC file (ISO 28500), which trusts no Content-Length.

A record ends where its Content-Length says, and there two line ends must follow (some writers add more) and then the
next record, or the end of the file. In a compressed archive whose records are gzip members of their own, a record also
ends with its member. Otherwise the length is wrong: the record is not read, and reading goes on with the next header
that is found.
"""

import dataclasses
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from allam_jax.corpus.compressed_streams import DamagedStreamError, pieces_of_file
from allam_jax.corpus.text_lines import DamagedFile

HEADER_BYTES = 1 << 20  # more than any real header
WRONG_LENGTH = "with a wrong Content-Length"

_START = b"WARC/"
_END_BYTES = 17  # of the longest end of a record and the start of the next
_HEADER_END = re.compile(rb"\r?\n\r?\n")
_CUT_ENDS = (b"", b"\r", b"\n", b"\r\n", b"\r\n\r")
_RECORD_END = re.compile(rb"(?:\r\n\r\n|\n\n)(?:\r?\n){0,4}(?=WARC/|\Z)")
_NEXT_RECORD = re.compile(rb"\n\r?\n(WARC/\d\.\d+\r?\n)")
_MUST_HAVE = {"warc-type", "warc-record-id", "warc-date", "content-length"}


@dataclasses.dataclass(frozen=True)
class WarcRecord:
    """A record; `headers` have names in lower case. `content` is None for more bytes than were asked for."""

    headers: Mapping[str, str]
    content: bytes | None

    @property
    def kind(self) -> str:
        """WARC-Type: response, conversion, ..."""
        return self.headers.get("warc-type", "").lower()


def warc_records(file: Path, *, limit: int) -> Iterator[WarcRecord | str]:
    """Yields the records, or `WRONG_LENGTH` for each that has a wrong length; holds at most `limit` bytes of one.

    Raises DamagedFile where the archive is cut short, or is no archive; all records before have been yielded.
    """
    archive = _Archive(pieces_of_file(file))
    try:
        if archive.begins() and not archive.held.startswith(_START):
            raise DamagedStreamError("no web archive: it begins with no record")
        while archive.begins():
            yield _next_record(archive, limit=limit)
    except DamagedStreamError as error:
        raise DamagedFile(f"{file}: damaged or no web archive ({error}); fetch it again") from None


def parse_headers(head: bytes) -> tuple[str, dict[str, str]]:
    """The first line of a header, and name in lower case -> value. Of headers of one name the first counts."""
    try:
        lines = head.decode().split("\n")
    except UnicodeDecodeError:
        lines = head.decode("latin-1").split("\n")
    found: dict[str, str] = {}
    name = ""
    for line in lines[1:]:
        if line[:1] in (" ", "\t"):  # goes on from the line before
            found[name] = f"{found.get(name, '')} {line.strip()}"
            continue
        name, _, value = line.partition(":")
        name = name.strip().lower()
        found.setdefault(name, value.strip())
    return lines[0].strip(), found


def split_header(content: bytes) -> tuple[bytes, bytes]:
    """The header that content of HTTP begins with, and the rest."""
    end = _HEADER_END.search(content, 0, HEADER_BYTES)
    return (content[: end.start()], content[end.end() :]) if end else (content[:HEADER_BYTES], b"")


def _next_record(archive: "_Archive", *, limit: int) -> WarcRecord | str:
    head = archive.header()
    size = _length(head)
    if size is not None and size > limit:
        if archive.skip(size) and (end := archive.end_of_record(0)):
            del archive.held[:end]
            return WarcRecord(parse_headers(head)[1], None)
    elif size is not None and (end := archive.end_of_record(size)):
        content = bytes(archive.held[:size])
        if not _holds_records(content):
            del archive.held[:end]
            return WarcRecord(parse_headers(head)[1], content)
    archive.to_next_record()
    return WRONG_LENGTH


def _length(head: bytes) -> int | None:
    """The Content-Length; None if it is missing, no number, or given twice."""
    values = set(re.findall(rb"(?im)^content-length[ \t]*:[ \t]*(.*?)[ \t\r]*$", head))
    value = values.pop() if len(values) == 1 else b""
    return int(value) if re.fullmatch(rb"\d{1,18}", value) else None


def _holds_records(content: bytes) -> bool:
    """Whether a record ends exactly at the end of the content: a wrong length took it in."""
    for match in _NEXT_RECORD.finditer(content) if _START in content else ():
        end = _HEADER_END.search(content, match.end())
        if end:
            head = content[match.start(1) : end.end()]
            size = _length(head)
            if size is not None and end.end() + size == len(content) and parse_headers(head)[1].keys() >= _MUST_HAVE:
                return True
    return False


class _Archive:
    """The bytes that are still to be read; `held` are the next ones, as far as they are known.

    Where a gzip member begins with a record, no bytes of the next member are held before `begins` is called.
    """

    def __init__(self, pieces: Iterator[tuple[bytes, bool]]):
        self._pieces = pieces
        self._next = bytearray()
        self.held = bytearray()
        self.in_next_member = False

    def begins(self) -> bool:
        """Whether there is one more record; its first bytes are then held."""
        if not self.need(len(_START)) and not self.held and self.in_next_member:
            self.held, self._next, self.in_next_member = self._next, bytearray(), False
            return self.begins()
        return bool(self.held)

    def need(self, size: int) -> bool:
        """Whether so many bytes are held, after reading as many as it takes."""
        while len(self.held) < size:
            if self.in_next_member or not self._read():
                return False
        return True

    def header(self) -> bytes:
        """The bytes to the end of the header, which are then no longer held."""
        place = 0
        while not (match := _HEADER_END.search(self.held, place)):
            if len(self.held) > HEADER_BYTES:
                raise DamagedStreamError(f"a header of more than {HEADER_BYTES} bytes")
            place = max(len(self.held) - 3, 0)
            if not self.need(len(self.held) + 1):
                if self.in_next_member:
                    break
                raise DamagedStreamError("a header is not complete")
        end = match.end() if match else len(self.held)
        head = bytes(self.held[:end])
        del self.held[:end]
        return head

    def skip(self, size: int) -> bool:
        """Leaves out bytes; False if the member has fewer. Raises DamagedStreamError if the file has fewer."""
        while size > len(self.held):
            size -= len(self.held)
            self.held.clear()
            if not self.need(1):
                if self.in_next_member:
                    return False
                raise DamagedStreamError("the last record is not complete")
        del self.held[:size]
        return True

    def end_of_record(self, size: int) -> int:
        """How many bytes a record with a content of this size takes; 0 where no record ends there.

        Raises DamagedStreamError where the file ends before.
        """
        at_end = not self.need(size + _END_BYTES) and not self.in_next_member
        if at_end and self.held[size:] in _CUT_ENDS and not _NEXT_RECORD.search(self.held):
            raise DamagedStreamError("the last record is not complete")
        match = _RECORD_END.match(self.held, size)
        return match.end() if match else 0

    def to_next_record(self) -> None:
        """Leaves out everything before the next header, or the end of the member, or of the file."""
        while not (match := _NEXT_RECORD.search(self.held)):
            del self.held[: max(len(self.held) - 32, 0)]  # a header may begin at the end
            if not self.need(len(self.held) + 1):
                self.held.clear()
                return
        del self.held[: match.start(1)]

    def _read(self) -> bool:
        """Reads one piece; False at the end of the file."""
        piece = next(self._pieces, None)
        if piece is None:
            return False
        data, ends = piece
        self.held += data
        if ends:
            while len(self._next) < len(_START) and (piece := next(self._pieces, None)) is not None:
                self._next += piece[0]
            self.in_next_member = self._next.startswith(_START)
            if not self.in_next_member:
                self.held += self._next
                self._next.clear()
        return True
