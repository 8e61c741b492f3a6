"""A file of JSON Lines that is only appended to, and in which nothing is lost or half-written, whatever is killed."""

import json
import os
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Generic, TypeVar

from absl import logging

from allam_jax.errors import UserError
from allam_jax.files import json_text

T = TypeVar("T")


class LineLog(Generic[T]):
    """The values of a file's lines. Safe for several threads; one process at a time writes.

    A line that a crash has cut short was never confirmed to who sent it: it is told and removed on opening. A last line
    that is whole but for its newline stays.

    Attributes:
        found: the values that were there when the file was opened.
    """

    def __init__(self, path: Path, *, read: Callable[[Any], T | None], what: str):
        """Opens the file, or makes it.

        Args:
            path: of the file.
            read: the value of a line's JSON; None for a line that is none.
            what: a line is, for the error about one that is something else: "vote; expected pair, rater, ...".

        Raises:
            UserError: a line is something else.
        """
        self._lock = threading.Lock()
        content = path.read_bytes() if path.exists() else b""
        self.found, rest = _values(content, path=path, read=read, what=what)
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
        if rest:
            said = rest.decode(errors="backslashreplace")
            logging.warning(
                "%s: the last line is cut, is no %s, and is removed: %s", path, what.partition(";")[0], said
            )
            os.truncate(self._file, len(content) - len(rest))
        os.lseek(self._file, 0, os.SEEK_END)
        if content and not rest and not content.endswith(b"\n"):
            os.write(self._file, b"\n")

    def append(self, value: Mapping[str, Any]) -> None:
        """Writes a line; returns when the disk has it. OSError if it cannot: then the file is as before."""
        line = (json_text(value) + "\n").encode()
        with self._lock:
            end = os.lseek(self._file, 0, os.SEEK_END)
            try:
                if os.write(self._file, line) < len(line):
                    raise OSError("the disk is full")
                os.fsync(self._file)
            except OSError:
                os.truncate(self._file, end)
                os.lseek(self._file, end, os.SEEK_SET)
                raise

    def close(self) -> None:
        """Closes the file."""
        os.close(self._file)


def read_lines(path: Path, *, read: Callable[[Any], T | None], what: str) -> list[T]:
    """The values of such a file, which another process or machine has written; UserError as for `LineLog`."""
    if not path.is_file():
        raise UserError(f"{path}: no such file; give the path of what was written")
    return _values(path.read_bytes(), path=path, read=read, what=what)[0]


def _values(content: bytes, *, path: Path, read: Callable[[Any], T | None], what: str) -> tuple[list[T], bytes]:
    """The values of all whole lines; what is left is the beginning of another one."""
    *lines, rest = content.split(b"\n")
    found = []
    for number, line in enumerate(lines, start=1):
        if (value := _value(line, read)) is None:
            raise UserError(f"{path}, line {number}: no {what}; mend or remove the line")
        found.append(value)
    if (last := _value(rest, read)) is not None:
        return [*found, last], b""
    return found, rest


def _value(line: bytes, read: Callable[[Any], T | None]) -> T | None:
    try:
        return read(json.loads(line))
    except ValueError:
        return None
