"""The one exception for things the user can fix, and how a process ends."""

import difflib
import signal
from collections.abc import Iterable

# Exit statuses beside 0 and Python's own 1, and beside those of `stopped_by`.
USER_ERROR = 2  # a UserError: a further attempt would end in the same way
STALLED = 75  # the watchdog has ended a run without progress: a further attempt continues it
PEER_ENDED = 76  # another process of the job has ended: a further attempt of all processes continues the run


class UserError(Exception):
    """Bad input: `run.py` shows the message on one line, without a traceback, and exits with status 2.

    The message names the thing (file, line, key, value), says what was expected and what to do about it.
    """


class Stopped(Exception):
    """The run was asked to stop by a signal, such as "SIGTERM", has saved, and can go on."""

    def __init__(self, message: str, *, by: str):
        super().__init__(message)
        self.status = stopped_by(signal.Signals[by])


def stopped_by(number: int) -> int:
    """The exit status of a process that a signal has ended before its work was done: 128 and its number, as in a shell.

    It is not 0, because what waits for the work would take it for done: a scheduler, a script, the next command.
    """
    return 128 + number


def was_stopped(status: int) -> bool:
    """Whether a status is one of `stopped_by`, of the signals that ask a process to end."""
    return status in map(stopped_by, (signal.SIGHUP, signal.SIGINT, signal.SIGTERM))


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: those like it, or else all."""
    known = list(known)
    if not known:
        return "there are none"
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(close)}?" if close else f"known: {', '.join(known)}"
