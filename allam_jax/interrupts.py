"""SIGTERM and Ctrl-C where the training loop does not look after them: there is nothing to save.

Both raise an exception, so that temporary files are removed. Python may be inside a callback that swallows it, so the
signal is also remembered, and raised again at the next `raise_pending`.
"""

import signal
from types import FrameType

_pending: list[int] = []


class Terminated(KeyboardInterrupt):
    """SIGTERM came."""


def install() -> None:
    """Sets the handlers of the process; from the main thread."""
    signal.signal(signal.SIGTERM, _on_signal)
    signal.signal(signal.SIGINT, _on_signal)


def raise_pending() -> None:
    """Raises Terminated or KeyboardInterrupt if one of the signals has come."""
    if _pending:
        raise Terminated if _pending[-1] == signal.SIGTERM else KeyboardInterrupt


def _on_signal(number: int, frame: FrameType | None) -> None:
    _pending.append(number)
    raise_pending()
