"""The training loop: step, log, evaluate, save, and leave when asked to."""

import contextlib
import dataclasses
from collections.abc import Callable, Mapping, Sequence

import jax
from absl import logging

from allam_jax import watchdog
from allam_jax.errors import Stopped
from allam_jax.evaluation.metric_keys import metric_key
from allam_jax.model.llama import Params
from allam_jax.settings import Settings
from allam_jax.training.guard import SkipWatch
from allam_jax.training.metrics import Row
from allam_jax.training.progress import ProgressLine, Throughput, peak_memory
from allam_jax.training.session import Session
from allam_jax.training.signals import StopSignal
from allam_jax.training.step import TrainStep
from allam_jax.training.trace import Tracer

_MANY_LOST = 0.1  # share of lost updates that is told

# Is shown the rows of metrics.jsonl a few steps late. What it returns, unless it is None, ends the run: why it is over.
Watcher = Callable[[Row], str | None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Scores of a suite, at intervals of its own; they are logged as `eval/SUITE/NAME/METRIC`."""

    suite: str
    every: int  # steps; 0: only at the end. Otherwise it also runs before the first step
    scores: Callable[[Params], Mapping[str, Mapping[str, float]]]  # name -> metric -> number; all processes call it

    def is_due(self, step: int, *, last: bool) -> bool:
        """Whether it runs after `step` updates."""
        return last or (self.every > 0 and step % self.every == 0)

    def row(self, params: Params, *, averaged: bool = False) -> dict[str, float]:
        """The scores under their keys; those of averaged parameters are of the suite SUITE_average."""
        suite = f"{self.suite}_average" if averaged else self.suite
        return {
            metric_key(suite, name, metric): value
            for name, by_metric in self.scores(params).items()
            for metric, value in by_metric.items()
        }


def run_loop(
    session: Session,
    config: Settings,
    *,
    train_step: TrainStep,
    evaluations: Sequence[Evaluation] = (),
    watchers: Sequence[Watcher] = (),
    peak_flops: float = 0.0,
) -> str | None:
    """Trains from the session's state to `config.train.steps`; the last state has been saved on return.

    Args:
        session: the open run.
        config: its sections `train`, `checkpoint`, `metrics` and `guard` say when to log, save, trace and give up.
        train_step: of `session.run`.
        evaluations: what is scored on the way and at the end.
        watchers: what looks at the metrics while they come in.
        peak_flops: of one device, per second, for the model FLOP utilisation; 0: unknown, not shown.

    Returns:
        Why a watcher has ended the run before its last step; None where it has not.

    Raises:
        Stopped: SIGTERM or Ctrl-C came; the state has been saved.
        UserError: the guard gave up, or saving failed.
    """
    run, loader, checkpointer, writer = session.run, session.loader, session.checkpointer, session.writer
    total_steps, save_every = config.train.steps, config.checkpoint.every
    throughput = Throughput(
        total_steps=total_steps,
        tokens_per_step=run.tokens_per_step,
        flops_per_token=run.model.flops_per_token(run.seq_len),
        peak_flops=peak_flops * run.device_count,
    )
    progress = ProgressLine(total_steps=total_steps)
    first_step = step = int(session.state.step)

    skips = SkipWatch(config.guard.max_in_a_row)
    told: set[str] = set()
    over: list[str] = []  # why the run ends early

    def show(rows: list[Row]) -> None:
        for row in rows:
            if row.get("lost_updates", 0) > _MANY_LOST and not told:
                told.add("lost_updates")
                logging.warning(
                    "step %d: %.0f %% of the weights did not move, because %s cannot hold so small a change "
                    "(lost_updates); train with param_dtype=float32, or with a higher learning rate",
                    *(row["step"], 100 * row["lost_updates"], run.param_dtype),
                )
            if "loss" in row:
                progress.show(row)
            over.extend(reason for watcher in watchers if (reason := watcher(row)) is not None)

    def evaluate(*, last: bool) -> None:
        due = [evaluation for evaluation in evaluations if evaluation.is_due(step, last=last)]
        if not due:
            return
        watchdog.note("evaluate")
        with throughput.pause():
            row = {key: value for evaluation in due for key, value in evaluation.row(session.state.params).items()}
            if (average := session.averaged_params()) is not None:
                for evaluation in due:
                    row |= evaluation.row(average, averaged=True)
            show(writer.write(step, row))
            progress.print(f"step {step}: " + "  ".join(f"{key} {value:.4f}" for key, value in row.items()))

    def save() -> None:
        watchdog.note("save")
        # The rows up to this step are on disk before the checkpoint is: a resume loses no row and repeats none.
        with throughput.pause():
            show(writer.flush())
            session.save(step)

    with StopSignal() as stop, contextlib.ExitStack() as stack:
        stack.callback(progress.end)
        tracer = Tracer(
            session.workdir, steps=config.metrics.profile_steps, last_step=config.train.steps, pause=throughput.pause
        )
        stack.callback(tracer.stop)
        if step == 0:
            evaluate(last=False)

        ends = step >= total_steps
        while not ends:
            # ---- step ----
            watchdog.note("data", step=step + 1)
            batch = session.next_batch()
            watchdog.note("compile" if step == first_step else "step")
            tracer.before(step + 1, waits_for=session.state)
            session.state, metrics = train_step(session.state, batch)
            step += 1
            session.tokens.add(metrics.pop("source_tokens"))
            skips.add(step, metrics["skipped_in_a_row"])
            last = step == total_steps

            # ---- log ----
            watchdog.note("log")
            timing = throughput.step(step)
            if step == first_step + 1:
                jax.block_until_ready(metrics)  # this step compiled: its time says nothing about the next
                throughput.restart()
            if last or step % config.train.log_every == 0:
                values = {**metrics, **loader.mixture_at(step - 1)}
                show(writer.write(step, values, timing={**timing, **peak_memory(session.mesh)}))
                session.tokens.settle(keep=2)
            checkpointer.check()
            tracer.after(step, waits_for=metrics)

            # ---- evaluate ----
            ends = last or bool(over)
            evaluate(last=ends)

            # ---- save, stop ----
            signal = stop.requested(step)
            if ends or signal or (save_every and step % save_every == 0):
                save()
            if signal and not ends:
                watchdog.note("save")
                checkpointer.wait()
                said = f"{signal}: saved step {step} of {total_steps}; run the same command again to go on"
                raise Stopped(said, by=signal)
        watchdog.note("save")
        checkpointer.wait()
        skips.settle()
    epochs = {name: round(value, 3) for name, value in loader.epochs().items()}
    tokens = session.tokens.settle(keep=0)
    logging.info("trained to step %d; tokens by source: %s; epochs: %s", step, tokens, epochs)
    if step == total_steps:
        return None
    logging.warning("the run ends at step %d of %d, which is saved: %s", step, total_steps, over[0])
    return over[0]
