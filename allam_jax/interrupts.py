"""SIGTERM and Ctrl-C: they end the process at once, or ask a block of code to stop when it is ready.

`install` makes both raise an exception, so that temporary files are removed. Python may be inside a callback that
swallows it; so the signal is also remembered, and raised again at the next `raise_pending`. Code that has something to
save runs inside a `StopRequest`, which only takes note.
"""

import os
import signal
import threading
from collections.abc import Mapping
from types import FrameType, TracebackType
from typing import Self

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


class StopRequest:
    """Context manager in which signals are noted instead of raised; restores the old handlers on exit.

    Attributes:
        received: names of the signals that have come, oldest first.
    """

    def __init__(self, *, notices: Mapping[str, str]):
        """`notices` maps names of signals ("SIGTERM") to the line that is printed when one comes; others are left."""
        self.received: list[str] = []
        self._notices = notices
        self._old: dict[int, object] = {}

    def noted(self, name: str) -> None:
        """Called when a signal has come, before its line is printed; a subclass may raise."""

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # Python allows handlers nowhere else
            for name in self._notices:
                self._old[signal.Signals[name]] = signal.signal(signal.Signals[name], self._on_signal)
        try:
            raise_pending()  # one that came before and was swallowed
        except KeyboardInterrupt:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._old.clear()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        self.received.append(name)
        self.noted(name)
        # Unbuffered: the signal may have come in the middle of another print.
        os.write(2, f"\n{self._notices[name]}\n".encode())
