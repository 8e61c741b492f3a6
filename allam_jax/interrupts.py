"""SIGTERM, SIGHUP and Ctrl-C: they end the process at once, or ask a block of code to stop when it is ready.

While a program starts, `leave_at_signals` makes them end it, because nothing has to be saved or removed. `install`
makes them raise an exception, so that temporary files are removed. Python may be inside a callback that swallows it:
then it is raised again. Code that has something to save runs inside a `StopRequest`, which only takes note. A main
thread that is stuck in a library hears no signal, so a second thread reads them too. It also interrupts a call that
began to wait just after the signal had come: `input`, for example, would hear it with the next key only.
"""

import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from types import FrameType, TracebackType
from typing import Any, Self

from allam_jax.errors import stopped_by

ENDS_WITH_PARENT = "ALLAM_JAX_ENDS_WITH"  # a variable with the process id of a launcher, whose jobs end with it
_STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_DEAF_SECONDS = 5.0  # after which a main thread that has not heard a signal is given up
_NUDGE_SECONDS = 0.2  # after which a call that waits in the main thread is interrupted
_CALLBACK_SECONDS = 0.01  # after which a callback that has swallowed an exception has ended
_SET_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of prctl(2)

_pending: list[int] = []
_swallowed: list[BaseException] = []
_heard = threading.Event()  # the main thread has run the handler of the last signal
_active: list["StopRequest"] = []
_listeners: list[Callable[[str], None]] = []
_leaving: list[Callable[[str, int], None]] = []
_last: list[float] = []  # time.monotonic() of the signals that the second thread has read


class Terminated(KeyboardInterrupt):
    """SIGTERM or SIGHUP came."""


def leave_at_signals() -> None:
    """Until `install`, a signal ends the process with one line and the status of `stopped_by`. A hang-up is silent."""
    for number in _ours():
        signal.signal(number, _on_early_signal)


def install() -> None:
    """Sets the handlers of the process; from the main thread."""
    for number in _ours():
        signal.signal(number, _on_signal)
    if not isinstance(sys.unraisablehook, _RaisesAgain):
        reading, writing = os.pipe()
        os.set_blocking(writing, False)
        signal.signal(signal.SIGURG, lambda number, frame: _raise_swallowed())  # with a handler it interrupts calls
        sys.unraisablehook = _RaisesAgain(sys.unraisablehook, wake=writing)
        signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        threading.Thread(target=_listen, args=(reading,), name="signals", daemon=True).start()


def ignore() -> None:
    """From here on signals change nothing: the work is done and the process is about to end."""
    for number in _ours():
        signal.signal(number, signal.SIG_IGN)


def end_with_parent() -> None:
    """If a launcher has asked for it, SIGTERM comes when that launcher ends, however it ends."""
    parent = os.environ.pop(ENDS_WITH_PARENT, "")
    if parent:
        ctypes.CDLL(None, use_errno=True).prctl(_SET_DEATH_SIGNAL, signal.SIGTERM)
        if os.getppid() != int(parent):  # it ended before
            signal.raise_signal(signal.SIGTERM)


def raise_pending() -> None:
    """Raises Terminated or KeyboardInterrupt if one of the signals has come."""
    if _pending:
        _swallowed.clear()
        raise _exception(_pending[-1])


def pending() -> bool:
    """Whether a signal has come that ends the process."""
    return bool(_pending)


def seconds_since_signal() -> float | None:
    """Seconds since the last signal came, also if the main thread has not heard it; None without one."""
    return time.monotonic() - _last[-1] if _last else None


def on_signal(listener: Callable[[str], None]) -> None:
    """Calls `listener` with the name of every signal, in a thread of its own."""
    _listeners.append(listener)


def on_leaving(listener: Callable[[str, int], None]) -> None:
    """Calls `listener(line, status)` before a process with a deaf main thread is ended."""
    _leaving.append(listener)


def last_words(number: int) -> tuple[str, int]:
    """The line and the exit status of a process that a signal ends while there is nothing to save."""
    words = "interrupted" if number == signal.SIGINT else f"{signal.Signals(number).name}: nothing to save"
    return f"{words}; run the same command again to go on", stopped_by(number)


def last_signal() -> int:
    """The number of the last signal that ended the work; a second Ctrl-C does so inside a `StopRequest` too."""
    return _pending[-1] if _pending else signal.SIGINT


def _ours() -> list[signal.Signals]:
    """The signals to handle: nohup has switched off the hang-up, and it stays off."""
    return [number for number in _STOPPING if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN]


def _exception(number: int) -> type[KeyboardInterrupt]:
    return KeyboardInterrupt if number == signal.SIGINT else Terminated


def _on_early_signal(number: int, frame: FrameType | None) -> None:
    line, status = last_words(number)
    if number != signal.SIGHUP:
        os.write(2, f"{line}\n".encode())
    os._exit(status)


def _on_signal(number: int, frame: FrameType | None) -> None:
    _heard.set()
    _raise_swallowed()
    _pending.append(number)
    raise_pending()


def _raise_swallowed() -> None:
    if _swallowed:
        raise _swallowed.pop()


def _listen(reading: int) -> None:
    """Reads the numbers of signals as they come. Ends a process whose main thread is deaf and has nothing to save."""
    while True:
        for number in os.read(reading, 64):
            if number == 0:
                _raise_again()
            if number not in _STOPPING:
                continue
            _last.append(time.monotonic())
            for listener in _listeners:
                listener(signal.Signals(number).name)
            if not _heard.wait(_NUDGE_SECONDS):
                _nudge()
                if not _heard.wait(_DEAF_SECONDS):
                    _give_up(number)
            _heard.clear()


def _raise_again() -> None:
    """Interrupts the main thread until it has raised what a callback has swallowed."""
    given_up = time.monotonic() + _DEAF_SECONDS
    while _swallowed:
        time.sleep(_CALLBACK_SECONDS)
        _nudge()
        if time.monotonic() > given_up:
            _give_up(last_signal())


def _nudge() -> None:
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGURG)


def _give_up(number: int) -> None:
    """Ends the process, unless something in it wants to save at this signal."""
    if any(request.notes(number) for request in _active):
        return
    line, status = last_words(number)
    for leave in _leaving:
        leave(line, status)
    os.write(2, f"{line}\n".encode())
    os._exit(status)


class _RaisesAgain:
    """The hook for exceptions that a callback swallows: ours are raised again as soon as the callback has ended."""

    def __init__(self, hook: Callable[[Any], Any], *, wake: int):
        self._hook, self.wake = hook, wake

    def __call__(self, unraisable: Any) -> None:
        error = unraisable.exc_value
        if isinstance(error, KeyboardInterrupt):
            _swallowed.append(error)
            os.write(self.wake, b"\0")  # not here: it would be raised inside of this hook, and swallowed again
        else:
            self._hook(unraisable)


class StopRequest:
    """Context manager in which signals are noted instead of raised; restores the old handlers on exit.

    A signal that came too late to change the work stays pending: `raise_pending` raises it before the next work.

    Attributes:
        received: names of the signals that have come, oldest first.
    """

    def __init__(self, *, notices: Mapping[str, str]):
        """`notices` maps names of signals ("SIGTERM") to the line that is printed when one comes; others are left."""
        self.received: list[str] = []
        self._notices = notices
        self._old: dict[int, object] = {}

    def notes(self, number: int) -> bool:
        """Whether it takes note of the signal."""
        return signal.Signals(number).name in self._notices

    def noted(self, name: str) -> None:
        """Called when a signal has come, before its line is printed; a subclass may raise."""

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # Python allows handlers nowhere else
            for name in self._notices:
                number = signal.Signals[name]
                if number in _ours():
                    self._old[number] = signal.signal(number, self._on_signal)
        _active.append(self)
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
        _active.remove(self)
        if error is None:
            _pending.extend(signal.Signals[name] for name in self.received)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        _heard.set()
        _raise_swallowed()
        name = signal.Signals(number).name
        self.received.append(name)
        self.noted(name)
        # Unbuffered: the signal may have come in the middle of another print.
        os.write(2, f"\n{self._notices[name]}\n".encode())
