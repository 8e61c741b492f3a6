"""Being asked to stop: finish the step, save, and leave with status 0.

SIGTERM (a scheduler, before it takes the machine away) and SIGINT (Ctrl-C) set a flag that the loop looks at after
every step. A second SIGINT stops at once. On many hosts one process may be told before the others, and all must save
the same step: there JAX's preemption service catches SIGTERM and lets all processes agree on a step to stop at.
"""

import os
import signal
import threading
from types import FrameType, TracebackType

import jax
from jax.experimental import multihost_utils

from allam_jax import interrupts


class StopSignal:
    """Context manager in which SIGTERM and SIGINT only ask to stop; restores the old handlers on exit."""

    def __init__(self) -> None:
        self._received: str | None = None
        self._old: dict[int, object] = {}

    def requested(self, step: int) -> str | None:
        """Name of the signal if the run shall stop after `step` updates, else None.

        On many hosts every process must call it once for every step, and all get the same answer.
        """
        if jax.process_count() == 1:
            return self._received
        return "SIGTERM" if multihost_utils.reached_preemption_sync_point(step) else None

    def __enter__(self) -> "StopSignal":
        if threading.current_thread() is threading.main_thread():  # Python allows handlers nowhere else
            self._old[signal.SIGINT] = signal.signal(signal.SIGINT, self._on_interrupt)
            if jax.process_count() == 1:  # otherwise the preemption service has its own
                self._old[signal.SIGTERM] = signal.signal(signal.SIGTERM, self._on_terminate)
        try:
            interrupts.raise_pending()  # one that came during the start and was swallowed
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

    def _on_terminate(self, number: int, frame: FrameType | None) -> None:
        self._received = "SIGTERM"
        _say("SIGTERM: saving after this step")

    def _on_interrupt(self, number: int, frame: FrameType | None) -> None:
        if self._received == "SIGINT":
            raise KeyboardInterrupt
        self._received = "SIGINT"
        _say("Ctrl-C: saving after this step; once more to stop at once, without saving")
        if jax.process_count() > 1:
            os.kill(os.getpid(), signal.SIGTERM)  # tells the preemption service, and so the other processes


def _say(text: str) -> None:
    # Unbuffered: the signal may have come in the middle of another print.
    os.write(2, f"\n{text}\n".encode())
