"""Notices a run that makes no progress: prints where it is and what all threads do, and at last ends the process.

The code notes what it does (`note`), which also tells the other processes of a job. A hung collective, a dead file
server or a deadlock raises no error: without a watchdog the machines wait for ever, in silence.
"""

import faulthandler
import os
import threading
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import NamedTuple, Self

from allam_jax import interrupts
from allam_jax.errors import STALLED

_SIGNAL_GRACE_SECONDS = 60.0  # for a run that has been asked to stop and does not move; a save may take longer
_SAVING = "save"
_WAITING = ("step", "log", "wait for others")  # phases in which a process may wait for others
NO_ANSWER = "does not answer"  # the phase of a process that says nothing any more, though its connection is open


class Place(NamedTuple):
    """Where a process is."""

    step: int  # the step that it works on, from 1; 0 before the first
    phase: str  # start, data, compile, step, log, evaluate, save, wait for others, end
    since: float  # time.monotonic() of the last note

    def describe(self, now: float) -> str:
        """For example `step 17, data, for 63 s`."""
        return f"step {self.step}, {self.phase}, for {now - self.since:.0f} s"


_place = Place(0, "start", time.monotonic())


def note(phase: str, *, step: int | None = None) -> None:
    """Says what this process does from now on. Noting the same again counts as progress too."""
    global _place
    _place = Place(_place.step if step is None else step, phase, time.monotonic())


def place() -> Place:
    """Where this process is."""
    return _place


def late(places: Sequence[Place | None]) -> list[int]:
    """The processes that others wait for, given where each is (None: not known).

    These are the ones that do not answer; else those at the lowest step; where all are at one step, those that do not
    wait for the others.
    """
    known = {index: here for index, here in enumerate(places) if here is not None}
    if not known:
        return []
    if silent := [index for index, here in known.items() if here.phase == NO_ANSWER]:
        return silent
    lowest = min(here.step for here in known.values())
    behind = [index for index, here in known.items() if here.step == lowest]
    if len(behind) == len(known):
        behind = [index for index in behind if known[index].phase not in _WAITING]
    return behind if len(behind) < len(known) else []


class Watchdog:
    """Context manager in whose block silence is reported, and ends the process after a second limit."""

    def __init__(
        self,
        *,
        report_minutes: float,
        leave_minutes: float,
        others: Callable[[], Sequence[Place | None]] = lambda: [],
        leaving: Callable[[str, int], None] = lambda line, status: None,
    ):
        """Starts to watch when the block is entered.

        Args:
            report_minutes: silence after which it prints where the run is; again after twice that time. 0: never.
            leave_minutes: silence after which the process ends with status `errors.STALLED`. 0: never.
            others: gives the places of all processes of the job.
            leaving: called with the last line and the status before the process ends.
        """
        self._report, self._leave = 60 * report_minutes, 60 * leave_minutes
        self._others, self._leaving = others, leaving
        self._ended = threading.Event()

    def __enter__(self) -> Self:
        note("start", step=0)
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()

    def _watch(self) -> None:
        limits = [limit for limit in (self._report, self._leave) if limit]
        tick = min([1.0, *(limit / 10 for limit in limits)])
        reported = _place
        due = self._report
        while not self._ended.wait(tick):
            here, now = _place, time.monotonic()
            silent = now - here.since
            if here.since != reported.since:
                reported, due = here, self._report
            if self._leave and silent > self._leave:
                self._end(f"error: no progress for {_minutes(silent)} ({here.describe(now)})", show=True)
            asked = interrupts.seconds_since_signal()
            if asked is not None and min(asked, silent) > _SIGNAL_GRACE_SECONDS and here.phase != _SAVING:
                self._end(f"error: asked to stop {asked:.0f} s ago, but the run does not move ({here.describe(now)})")
            if due and silent > due:
                due *= 2
                self._show(f"no progress for {_minutes(silent)} ({here.describe(now)})")

    def _show(self, line: str) -> None:
        now = time.monotonic()
        places = self._others()
        words = [f"watchdog: {line}"]
        for index, there in enumerate(places):
            mark = "  <- late" if index in late(places) else ""
            words.append(f"watchdog: process {index}: {there.describe(now) if there else 'not known'}{mark}")
        _write("\n".join([*words, "watchdog: what all threads of this process do:"]))
        faulthandler.dump_traceback(2, all_threads=True)

    def _end(self, line: str, *, show: bool = False) -> None:
        if show:
            self._show(line.removeprefix("error: "))
            line += "".join(f"; process {index} is late" for index in late(self._others()))
        line += "; ended without saving: run the same command again to go on from the last checkpoint"
        self._leaving(line, STALLED)
        _write(line)
        os._exit(STALLED)


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.1f} minutes" if seconds >= 90 else f"{seconds:.0f} s"


def _write(text: str) -> None:
    """Unbuffered: another thread may be stuck inside a print."""
    os.write(2, f"\n{text}\n".encode(errors="backslashreplace"))
