"""Orbax logs every step it takes, and tracebacks of what it raises anyway; users see our one-line errors instead."""

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
    """Once one write of a save has failed, asyncio logs the others as exceptions that nobody asked for."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        frames = traceback.extract_tb(error.__traceback__) if error else []
        return not any(f"{os.sep}orbax{os.sep}" in frame.filename for frame in frames)


def quiet_orbax() -> None:
    """Drops Orbax's log records, tracebacks of failed saves included: what fails is raised as an error here."""
    for name, kind in (("absl", _NotFromOrbax), ("asyncio", _NotRaisedInOrbax)):
        logger = logging.getLogger(name)
        if not any(isinstance(f, kind) for f in logger.filters):
            logger.addFilter(kind())
    if not isinstance(sys.unraisablehook, _DropsEchoes):
        sys.unraisablehook = _DropsEchoes(sys.unraisablehook)


class _DropsEchoes:
    """Once one write of a save has failed, each of the others would print that its event loop is closed."""

    def __init__(self, hook: Callable[[Any], Any]):
        self._hook = hook

    def __call__(self, unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            self._hook(unraisable)
