"""Standard output and error that may be closed, lose their reader, or take no UTF-8."""

import errno
import io
import os
import signal
import sys
from typing import Any, TextIO

from absl import logging

_READER_GONE = {errno.EPIPE, errno.EIO, errno.EBADF}
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def protect() -> None:
    """Makes the three standard streams safe to use; call it before any other file is opened.

    A stream that was closed reads or writes nothing: otherwise the next file would get its number, and libraries would
    write their messages into it. What libraries print goes to standard error, so that standard output holds results.
    If the reader of a pipe or the terminal goes away, the process is asked to stop as by SIGHUP, and what follows is
    dropped. So are messages (not results) that a full disk has no room for. Characters that
    the encoding does not have are escaped.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, os.O_RDONLY if number == 0 else os.O_WRONLY)  # takes the lowest free number
            assert opened == number
    sys.stdout, sys.stderr = _safe(sys.stdout, os.dup(1)), _safe(sys.stderr, 2)
    os.dup2(2, 1)
    logging.get_absl_handler().python_handler.stream = sys.stderr


def _safe(stream: TextIO | None, number: int) -> TextIO:
    if isinstance(stream, io.TextIOWrapper):
        stream.flush()
        encoding, unbuffered = stream.encoding, stream.write_through
    else:
        encoding, unbuffered = "utf-8", False
    outlet = _Outlet(number, "wb", closefd=False)
    return io.TextIOWrapper(
        io.BufferedWriter(outlet),
        encoding=encoding,
        errors="backslashreplace",
        line_buffering=number == 2 or outlet.isatty(),
        write_through=unbuffered,
    )


class _Outlet(io.FileIO):
    def write(self, data: Any) -> int:
        try:
            return super().write(data) or 0
        except OSError as error:
            if error.errno in _READER_GONE:
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self.fileno())
                os.close(nowhere)
                signal.raise_signal(signal.SIGHUP)
            elif error.errno not in _FULL or self.fileno() != 2:
                raise
            return memoryview(data).nbytes
