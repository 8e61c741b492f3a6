"""Orbax logs every step it takes, and tracebacks of what it raises anyway; users see our one-line errors instead."""

import logging
import os


class _NotFromOrbax(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return f"{os.sep}orbax{os.sep}" not in record.pathname


def quiet_orbax() -> None:
    """Drops Orbax's log records, tracebacks of failed saves included: what fails is raised as an error here."""
    logger = logging.getLogger("absl")
    if not any(isinstance(f, _NotFromOrbax) for f in logger.filters):
        logger.addFilter(_NotFromOrbax())
