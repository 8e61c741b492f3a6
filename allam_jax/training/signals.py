"""A training run that is asked to stop finishes the step, saves, and leaves with the signal's status.

SIGTERM (which a scheduler sends before it takes the machine away), SIGHUP (the terminal or the reader of the output is
gone) and SIGINT (Ctrl-C) are noted. The loop asks for them after every step. A second SIGINT stops at once. With
several processes the signal may reach one before the others, but all must save the same step: the lifeline lets all
agree on one.
"""

import jax

from allam_jax.interrupts import StopRequest
from allam_jax.parallel import lifeline

_NOTICES = {
    "SIGTERM": "SIGTERM: saving after this step",
    "SIGHUP": "SIGHUP: saving after this step",
    "SIGINT": "Ctrl-C: saving after this step; once more to stop at once, without saving",
}


class StopSignal(StopRequest):
    """Context manager in which signals only ask the loop to stop."""

    def __init__(self) -> None:
        super().__init__(notices=_NOTICES)
        self._lifeline = lifeline.current()
        assert self._lifeline or jax.process_count() == 1, (
            "several processes start with parallel.distributed.initialize"
        )
        if self._lifeline:
            self._lifeline.begin_loop()

    def requested(self, step: int) -> str | None:
        """Name of the signal if the run shall stop after `step` updates, else None.

        With several processes each must call it once for every step, and all get the same answer.
        """
        if self._lifeline:
            return self._lifeline.stop_after(step)
        return self.received[-1] if self.received else None

    def noted(self, name: str) -> None:
        """Raises KeyboardInterrupt at the second SIGINT."""
        if self.received.count("SIGINT") > 1:
            raise KeyboardInterrupt
        if self._lifeline:
            self._lifeline.request_stop(name)
