"""Orbax logs every step it takes, and tracebacks of what it raises anyway; users see our one-line errors instead."""

import logging
import os
import sys
from collections.abc import Callable
from typing import Any


class _NotFromOrbax(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return f"{os.sep}orbax{os.sep}" not in record.pathname


def quiet_orbax() -> None:
    """Drops Orbax's log records, tracebacks of failed saves included: what fails is raised as an error here."""
    logger = logging.getLogger("absl")
    if not any(isinstance(f, _NotFromOrbax) for f in logger.filters):
        logger.addFilter(_NotFromOrbax())
    if not isinstance(sys.unraisablehook, _DropsEchoes):
        sys.unraisablehook = _DropsEchoes(sys.unraisablehook)


class _DropsEchoes:
    """Once one write of a save has failed, each of the others would print that its event loop is closed."""

    def __init__(self, hook: Callable[[Any], Any]):
        self._hook = hook

    def __call__(self, unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            self._hook(unraisable)
