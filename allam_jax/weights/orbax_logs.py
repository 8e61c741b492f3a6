"""Silences Orbax, which logs every step and the tracebacks of errors that it raises anyway. Users see our errors."""

import logging
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any


class _NotFromOrbax(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return f"{os.sep}orbax{os.sep}" not in record.pathname


class _NotRaisedInOrbax(logging.Filter):
    """Drops asyncio's records of further failed writes: after one write of a save has failed, it logs all others."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        frames = traceback.extract_tb(error.__traceback__) if error else []
        return not any(f"{os.sep}orbax{os.sep}" in frame.filename for frame in frames)


def quiet_orbax() -> None:
    """Drops Orbax's log records and the tracebacks of failed saves. Each failure is still raised as an error."""
    for name, kind in (("absl", _NotFromOrbax), ("asyncio", _NotRaisedInOrbax)):
        logger = logging.getLogger(name)
        if not any(isinstance(f, kind) for f in logger.filters):
            logger.addFilter(kind())
    if not isinstance(sys.unraisablehook, _DropsEchoes):
        sys.unraisablehook = _DropsEchoes(sys.unraisablehook)


class _DropsEchoes:
    """Drops messages that an event loop is closed: after a failed save, each of its other writes prints one."""

    def __init__(self, hook: Callable[[Any], Any]):
        self._hook = hook

    def __call__(self, unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            self._hook(unraisable)
