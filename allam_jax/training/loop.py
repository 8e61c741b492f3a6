"""The training loop: step, log, evaluate, save, and leave when asked to."""

import contextlib
import dataclasses
from collections import deque
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.sharding import Mesh

from allam_jax.errors import Stopped
from allam_jax.model.llama import Params
from allam_jax.parallel.distributed import global_batch_array
from allam_jax.training.checkpoints import Checkpointer
from allam_jax.training.guard import check_skips
from allam_jax.training.metrics import MetricsWriter, Row
from allam_jax.training.progress import ProgressLine, Throughput
from allam_jax.training.signals import StopSignal
from allam_jax.training.state import TrainState
from allam_jax.training.step import Batch, Metrics


@dataclasses.dataclass(frozen=True, kw_only=True)
class Intervals:
    """How often things happen, in steps; 0 is never (but see each)."""

    steps: int  # updates of the whole run
    log: int
    evaluate: int  # 0: only at the end; otherwise also before the first step
    save: int  # 0: only at the end


def run_loop(
    state: TrainState,
    *,
    train_step: Callable[[TrainState, Batch], tuple[TrainState, Metrics]],
    loader: Any,
    mesh: Mesh,
    global_batch: int,
    seq_len: int,
    intervals: Intervals,
    evaluate: Callable[[Params], dict[str, float]],
    checkpointer: Checkpointer,
    writer: MetricsWriter,
    throughput: Throughput,
    describe: Callable[[dict[str, int]], dict[str, Any]],
    tokens_by_source: dict[str, int],
    max_skips_in_a_row: int,
) -> TrainState:
    """Trains from `state.step` to `intervals.steps` and returns the last state, which has been saved.

    Args:
        state: where to start; its buffers are donated.
        train_step: from `make_train_step`.
        loader: yields this process's rows as numpy batches; see `data.loader.Loader`.
        mesh, global_batch, seq_len: how the rows lie on the devices.
        intervals: when to log, evaluate and save.
        evaluate: parameters -> row of metrics; called by all processes.
        checkpointer: where to save.
        writer: where metrics go; opened for the step of `state`.
        throughput: measures the speed.
        describe: tokens by source -> metadata of a checkpoint.
        tokens_by_source: trained on so far, in the order of the loader's source ids, and then of sources that are no
            longer read; not changed.
        max_skips_in_a_row: see `check_skips`.

    Raises:
        Stopped: SIGTERM or Ctrl-C came; the state has been saved.
        UserError: the guard gave up, or saving failed.
    """
    counts = _TokenCounts(tokens_by_source)
    progress = ProgressLine(total_steps=intervals.steps)
    first_step = step = int(state.step)

    def show(rows: list[Row]) -> None:
        for row in rows:
            if "loss" in row:
                check_skips(row["skipped_in_a_row"], limit=max_skips_in_a_row, step=row["step"])
                progress.show(row)

    def save() -> None:
        # Everything up to this step is on disk before the checkpoint is: a resume drops later rows and none twice.
        show(writer.flush())
        metadata = describe(counts.settle(keep=0))
        checkpointer.save(step, state=state, data=loader.get_state(), metadata=metadata)

    def evaluate_and_log() -> None:
        with throughput.pause():
            results = evaluate(state.params)
            show(writer.write(step, results))
            progress.print(f"step {step}: " + "  ".join(f"{name} {value:.4f}" for name, value in results.items()))

    with StopSignal() as stop, contextlib.ExitStack() as stack:
        stack.callback(progress.end)
        if step == 0 and intervals.evaluate:
            evaluate_and_log()

        while step < intervals.steps:
            # ---- step ----
            batch = global_batch_array(next(loader), mesh=mesh, global_batch=global_batch)
            state, metrics = train_step(state, batch)
            step += 1
            counts.add(metrics.pop("source_tokens"))

            # ---- log ----
            timing = throughput.step(step, tokens=global_batch * seq_len)
            if step == first_step + 1:
                jax.block_until_ready(metrics)  # this step compiled: its time says nothing about the next
                throughput.restart()
            if step % intervals.log == 0 or step == intervals.steps:
                show(writer.write(step, {**metrics, **loader.mixture_at(step - 1)}, timing=timing))
                counts.settle(keep=2)
            checkpointer.check()

            # ---- evaluate ----
            last = step == intervals.steps
            if last or (intervals.evaluate and step % intervals.evaluate == 0):
                evaluate_and_log()

            # ---- save, stop ----
            signal = stop.requested(step)
            if last or signal or (intervals.save and step % intervals.save == 0):
                with throughput.pause():
                    save()
            if signal and not last:
                checkpointer.wait()
                raise Stopped(f"{signal}: saved step {step} of {intervals.steps}; run the same command again to go on")
        checkpointer.wait()
    epochs = {name: round(value, 3) for name, value in loader.epochs().items()}
    logging.info("trained to step %d; tokens by source: %s; epochs: %s", step, counts.settle(keep=0), epochs)
    return state


class _TokenCounts:
    """Exact tokens by source on the host, from device counts that are fetched late."""

    def __init__(self, start: dict[str, int]):
        self._totals = dict(start)
        self._waiting: deque[jax.Array] = deque()

    def add(self, counts: jax.Array) -> None:
        counts.copy_to_host_async()
        self._waiting.append(counts)

    def settle(self, *, keep: int) -> dict[str, int]:
        """Adds up all but the newest `keep` steps; returns the totals."""
        while len(self._waiting) > keep:
            counts = np.asarray(self._waiting.popleft())
            # A branch may leave out sources of its parent: their totals come after those of its own.
            for name, count in zip(self._totals, counts, strict=False):
                self._totals[name] += int(count)
        return dict(self._totals)
