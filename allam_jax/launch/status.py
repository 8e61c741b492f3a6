"""How the runs of a sweep are doing, read from their files: it needs no launcher and can be looked at from anywhere."""

import dataclasses
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from allam_jax.ablation.measures import METRICS_FILE
from allam_jax.launch import attempts
from allam_jax.launch.jobs import Job
from allam_jax.launch.runs import Run
from allam_jax.report.markdown import duration, number
from allam_jax.tasks.recipe import Stage, is_finished

_SILENT_SECONDS = 600  # a job that has written nothing for so long, and has not ended, is shown as silent
_TAIL_BYTES = 65_536
_REFRESH_SECONDS = 2.0


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the table."""

    run: str
    state: str  # finished, running, silent, queued, stopped, failed, waiting
    stages: str  # finished/all
    step: str
    loss: str
    left: str
    note: str


def rows(runs: Sequence[Run], jobs: Sequence[Job], *, folder: Path, queued: Mapping[str, str]) -> list[Row]:
    """The state of every run.

    Args:
        runs, jobs: of the sweep.
        folder: of the jobs' logs and records.
        queued: job -> its state in a scheduler's queue, for those that are in one.
    """
    job_of = {directory: job for job in jobs for directory in job.directories}
    return [_row(run, job_of, folder=folder, queued=queued) for run in runs]


def _row(run: Run, job_of: Mapping[Path, Job], *, folder: Path, queued: Mapping[str, str]) -> Row:
    done = [stage for stage in run.stages if is_finished(run.directories[stage.name])]
    counted = f"{len(done)}/{len(run.stages)}"
    if len(done) == len(run.stages):
        return Row(run.name, "finished", counted, "", _last_metric(run, "loss"), "", "")
    stage = next(stage for stage in run.stages if stage not in done)
    directory = run.directories[stage.name]
    job = job_of[directory]
    tries = attempts.read_attempts(folder, job.name)
    step, loss, left = _progress(stage, directory)
    state, note = _state(job, tries, directory=directory, folder=folder, queued=queued)
    if job.name != run.name:
        note = f"{job.name} {note}".strip()
    if len(tries) > 1:
        note = f"attempt {len(tries)} {note}".strip()
    return Row(run.name, state, f"{counted} {stage.name}", step, loss, left if state == "running" else "", note)


def _state(
    job: Job, tries: Sequence[Mapping[str, Any]], *, directory: Path, folder: Path, queued: Mapping[str, str]
) -> tuple[str, str]:
    if job.name in queued and (not tries or "ended" in tries[-1]):
        return "queued", queued[job.name].lower()
    if not tries:
        return "waiting", ""
    if "ended" in tries[-1]:
        error = tries[-1]["error"]
        return ("waiting", "") if not error else ("stopped" if tries[-1]["status"] == 0 else "failed", error)
    written = (attempts.log_path(folder, job.name), directory / METRICS_FILE)
    silent = time.time() - max(path.stat().st_mtime for path in written if path.exists())
    if silent > _SILENT_SECONDS:
        return "silent", f"nothing written for {duration(silent)}; started on {tries[-1]['host']}"
    return "running", ""


def _progress(stage: Stage, directory: Path) -> tuple[str, str, str]:
    """Step of all, loss and time left of a training stage."""
    row = _last_row(directory / METRICS_FILE)
    if row is None:
        return "", "", ""
    eta = row.get("eta")
    return (
        f"{row['step']:,}/{stage.config.train.steps:,}",
        number(row.get("loss")),
        duration(eta) if isinstance(eta, int | float) else "",
    )


def _last_metric(run: Run, key: str) -> str:
    row = _last_row(run.directories[run.stages[-1].name] / METRICS_FILE)
    return number(row[key]) if row and key in row else ""


def _last_row(path: Path) -> dict[str, Any] | None:
    """The last complete row with a loss, read from the end of the file."""
    if not path.is_file():
        return None
    with open(path, "rb") as file:
        file.seek(max(0, os.path.getsize(path) - _TAIL_BYTES))
        lines = file.read().split(b"\n")[:-1]
    for line in reversed(lines):
        try:
            row = json.loads(line)
        except ValueError:  # the first line may be cut
            continue
        if "loss" in row:
            return row
    return None


def table(some: Sequence[Row]) -> str:
    """The rows in columns, with the number of runs in each state above."""
    states = [row.state for row in some]
    counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    heading = Row("run", "state", "stage", "step", "loss", "left", "note")
    cells = [dataclasses.astuple(row) for row in (heading, *some)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]
    return "\n".join([f"{len(some)} runs: {counts}", *lines])


def watch(read: Callable[[], list[Row]]) -> None:
    """Prints the table; at a terminal again and again in place, until all runs have finished or Ctrl-C."""
    while True:
        some = read()
        live = sys.stdout.isatty()
        sys.stdout.write(("\x1b[H\x1b[2J" if live else "") + table(some) + "\n")
        sys.stdout.flush()
        if not live or all(row.state in ("finished", "stopped", "failed") for row in some):
            return
        time.sleep(_REFRESH_SECONDS)
