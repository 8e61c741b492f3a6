"""The one exception for things the user can fix."""


class UserError(Exception):
    """Bad input: `run.py` shows the message on one line, without a traceback, and exits with status 2.

    The message names the thing (file, line, key, value), says what was expected and what to do about it.
    """


class Stopped(Exception):
    """The run was asked to stop (SIGTERM, Ctrl-C), has saved, and can go on: exit status 0."""
