"""A file of JSON Lines that is only appended to, and in which nothing is lost or half-written, whatever is killed."""

import json
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from allam_jax.errors import UserError
from allam_jax.files import json_text


class LineLog:
    """The objects of a file, in order. Safe for several threads; one process at a time writes.

    A line that a crash has cut short was never confirmed to who sent it: it is removed on opening.
    """

    def __init__(self, path: Path):
        """Opens the file, or makes it. UserError for a line that is no object."""
        self._lock = threading.Lock()
        whole = _whole_lines(path) if path.exists() else b""
        self.found = _objects(whole, path=path)
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
        os.truncate(self._file, len(whole))
        os.lseek(self._file, 0, os.SEEK_END)

    def append(self, value: Mapping[str, Any]) -> None:
        """Writes an object; returns when the disk has it. OSError if it cannot: then the file is as before."""
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


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of such a file, of this or another machine; UserError where it is not there, or for another line."""
    if not path.is_file():
        raise UserError(f"{path}: no such file; give the path of what was written")
    return _objects(_whole_lines(path), path=path)


def _whole_lines(path: Path) -> bytes:
    content = path.read_bytes()
    return content[: content.rfind(b"\n") + 1]


def _objects(lines: bytes, *, path: Path) -> list[dict[str, Any]]:
    found = []
    for number, line in enumerate(lines.splitlines(), start=1):
        try:
            found.append(json.loads(line))
        except ValueError:
            found.append(None)
        if not isinstance(found[-1], dict):
            raise UserError(f"{path}, line {number}: no JSON object; remove the line")
    return found
