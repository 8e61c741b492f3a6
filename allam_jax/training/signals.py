"""A training run that is asked to stop finishes the step, saves, and leaves with status 0.

SIGTERM (which a scheduler sends before it takes the machine away) and SIGINT (Ctrl-C) are noted. The loop asks for them
after every step. A second SIGINT stops at once. On many hosts the signal may reach one process before the others, but
all must save the same step: there JAX's preemption service catches SIGTERM, and all processes agree on a step.
"""

import os
import signal

import jax
from jax.experimental import multihost_utils

from allam_jax.interrupts import StopRequest

_NOTICES = {
    "SIGTERM": "SIGTERM: saving after this step",
    "SIGINT": "Ctrl-C: saving after this step; once more to stop at once, without saving",
}


class StopSignal(StopRequest):
    """Context manager in which SIGTERM and SIGINT only ask the loop to stop."""

    def __init__(self) -> None:
        self._one_process = jax.process_count() == 1
        super().__init__(notices=_NOTICES if self._one_process else {"SIGINT": _NOTICES["SIGINT"]})

    def requested(self, step: int) -> str | None:
        """Name of the signal if the run shall stop after `step` updates, else None.

        On many hosts every process must call it once for every step, and all get the same answer.
        """
        if self._one_process:
            return self.received[-1] if self.received else None
        return "SIGTERM" if multihost_utils.reached_preemption_sync_point(step) else None

    def noted(self, name: str) -> None:
        """Raises KeyboardInterrupt at the second SIGINT."""
        if self.received.count("SIGINT") > 1:
            raise KeyboardInterrupt
        if not self._one_process:
            os.kill(os.getpid(), signal.SIGTERM)  # tells the preemption service, and so the other processes
