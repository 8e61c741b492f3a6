"""The one exception for things the user can fix."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Bad input: `run.py` shows the message on one line, without a traceback, and exits with status 2.

    The message names the thing (file, line, key, value), says what was expected and what to do about it.
    """


class Stopped(Exception):
    """The run was asked to stop (SIGTERM, Ctrl-C), has saved, and can go on: exit status 0."""


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: those like it, or else all."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(close)}?" if close else f"known: {', '.join(known)}"
