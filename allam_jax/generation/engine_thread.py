"""An engine in a thread of its own, for the threads of a server or a terminal."""

import collections
import threading
from collections.abc import Callable, Sequence

from absl import logging

from allam_jax.generation.engine import Engine
from allam_jax.generation.requests import Delta, Request

Listener = Callable[[Sequence[Delta] | Exception], None]  # is called in the engine's thread


class QueueFull(Exception):
    """As many samples wait as may."""


class EngineThread:
    """Steps an engine while it has work. All methods can be called from any thread.

    Attributes:
        failed: the exception that has ended the thread, if one has.
        tokens: that all answers have had.
    """

    def __init__(self, engine: Engine, *, max_queue: int):
        """`max_queue`: samples that may wait; a request that comes to an empty queue may exceed it alone."""
        self._engine, self._max_queue = engine, max_queue
        self._changed = threading.Condition()
        self._inbox: collections.deque[tuple[Request, Listener] | str] = collections.deque()
        self._listeners: dict[str, tuple[Listener, int]] = {}  # and the samples that have not ended
        self._stopping = False
        self._published = 0, engine.free_slots
        self.failed: Exception | None = None
        self.tokens = 0
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Samples that wait for a slot."""
        inbox = [item for item in list(self._inbox) if isinstance(item, tuple)]
        return self._published[0] + sum(request.sampling.samples for request, _ in inbox)

    @property
    def free_slots(self) -> int:
        """Slots that no sample occupies, after the last step."""
        return self._published[1]

    def submit(self, request: Request, listener: Listener) -> None:
        """Queues a request of a new name. `listener` gets its deltas, or the exception that ends it.

        Raises:
            UserError: the engine refuses it.
            QueueFull: too many samples wait.
            RuntimeError: the engine has failed.
        """
        self._engine.check(request)
        with self._changed:
            if self.failed is not None or self._stopping:
                raise RuntimeError(f"the engine has ended: {self.failed}")
            if self.waiting and self.waiting + request.sampling.samples > self._max_queue:
                raise QueueFull
            self._inbox.append((request, listener))
            self._changed.notify()

    def cancel(self, name: str) -> None:
        """Ends a request; its listener hears nothing more."""
        with self._changed:
            self._inbox.append(name)
            self._changed.notify()

    def stop(self) -> None:
        """Ends the thread after its step; what is under way is given up."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        try:
            while self._take():
                self._deliver(self._engine.step())
                with self._changed:
                    self._published = self._engine.queued, self._engine.free_slots
        except Exception as error:
            logging.exception("the engine has failed")
            with self._changed:
                self.failed = error
                orphans = [item for item in self._inbox if isinstance(item, tuple)]
            for listener in [one for one, _ in self._listeners.values()] + [one for _, one in orphans]:
                listener(error)

    def _take(self) -> bool:
        """Waits for work and hands it to the engine; False at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._inbox or self._engine.busy or self._stopping)
            self._published = self.waiting, self._published[1]
            taken = list(self._inbox)
            self._inbox.clear()
        for item in taken:
            if isinstance(item, str):
                self._listeners.pop(item, None)
                self._engine.cancel(item)
                continue
            request, listener = item
            self._engine.submit(request)
            self._listeners[request.name] = listener, request.sampling.samples
        return not self._stopping

    def _deliver(self, deltas: Sequence[Delta]) -> None:
        by_name: dict[str, list[Delta]] = {}
        for delta in deltas:
            self.tokens += len(delta.ids)
            by_name.setdefault(delta.name, []).append(delta)
        for name, some in by_name.items():
            if name not in self._listeners:
                continue  # cancelled
            listener, left = self._listeners.pop(name)
            left -= sum(delta.finish_reason is not None for delta in some)
            if left:
                self._listeners[name] = listener, left
            listener(some)
