"""The processor time of a step, from a sample of its documents.

Reading the clock of a thread is a call of the system that can take longer than a light step takes for a document.
"""

import time

_FIRST = 64  # documents that are all measured
_EVERY = 16  # of those after them


class StepClock:
    """Call `start` and `stop` around each document."""

    def __init__(self) -> None:
        self._count = self._sampled = 0
        self._first_seconds = self._sampled_seconds = 0.0
        self._started: float | None = None  # None: this document is not measured

    def start(self) -> None:
        """A document begins."""
        self._count += 1
        measured = self._count <= _FIRST or self._count % _EVERY == 0
        self._started = time.thread_time() if measured else None

    def stop(self) -> None:
        """The document ends."""
        if self._started is None:
            return
        seconds = time.thread_time() - self._started
        if self._count <= _FIRST:
            self._first_seconds += seconds
        else:
            self._sampled, self._sampled_seconds = self._sampled + 1, self._sampled_seconds + seconds

    @property
    def seconds(self) -> float:
        """Of all documents: those that were not measured take the mean of those that were."""
        if self._count <= _FIRST:
            return self._first_seconds
        mean = self._sampled_seconds / self._sampled if self._sampled else self._first_seconds / _FIRST
        return self._first_seconds + mean * (self._count - _FIRST)
