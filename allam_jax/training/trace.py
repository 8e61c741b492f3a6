"""A profile of some steps of a run: what ran on the devices and when, for XProf (`xprof --logdir WORKDIR/profile`)."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import jax
from absl import logging

PROFILE_FOLDER = "profile"


class Tracer:
    """Traces the steps `start` to `stop - 1` into `WORKDIR/profile`; with many processes, each into its own folder."""

    def __init__(
        self,
        workdir: Path,
        *,
        steps: tuple[int, ...],
        last_step: int,
        pause: Callable[[], AbstractContextManager],
    ):
        """Traces nothing yet.

        Args:
            workdir: of the run.
            steps: `metrics.profile_steps`: (start, stop), counting from 1; () traces nothing.
            last_step: of the run; a warning says so if it ends before `steps`.
            pause: entered while a trace is started or written: that time is not training.
        """
        self._steps = range(*steps) if steps else range(0)
        if self._steps.stop > last_step + 1:
            logging.warning("metrics.profile_steps = %s: the run ends at step %d already", steps, last_step)
        self._folder = Path(workdir) / PROFILE_FOLDER
        if jax.process_count() > 1:
            self._folder /= f"process_{jax.process_index()}"
        self._pause = pause
        self._tracing = False
        self._first = self._last = 0  # the steps that were traced

    def before(self, step: int, *, waits_for: Any) -> None:
        """Call before a step. Starts the trace once `waits_for` (arrays of the steps before) is there."""
        if step in self._steps and not self._tracing:
            jax.block_until_ready(waits_for)
            with self._pause():
                jax.profiler.start_trace(str(self._folder))
            self._tracing, self._first = True, step

    def after(self, step: int, *, waits_for: Any) -> None:
        """Call after a step. Writes the trace once the devices have done the step."""
        self._last = step
        if self._tracing and step + 1 not in self._steps:
            jax.block_until_ready(waits_for)
            self.stop()

    def stop(self) -> None:
        """Writes the trace, if one is under way; also for a run that ends in the middle of the steps."""
        if not self._tracing:
            return
        self._tracing = False
        with self._pause():
            jax.profiler.stop_trace()
        logging.info("profile of steps %d to %d: %s", self._first, self._last, self._folder)
