"""Shows the state of the runs of a sweep, from their files and from what a scheduler says of their jobs."""

import dataclasses
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from allam_jax.ablation.measures import METRICS_FILE
from allam_jax.errors import was_stopped
from allam_jax.launch.jobs import Job
from allam_jax.launch.runs import SweepRun
from allam_jax.report.markdown import duration, number
from allam_jax.slurm_queue import Entry
from allam_jax.tasks.recipe import Stage, is_finished

_SILENT_SECONDS = 600  # a job is silent if it has written nothing for this long and has not ended
_TAIL_BYTES = 65_536
_REFRESH_SECONDS = 2.0


@dataclasses.dataclass(frozen=True)
class RunState:
    """One row of the table; all texts are for display."""

    run: str
    state: str  # finished, running, silent, queued, stopped, failed, waiting
    stages: str  # finished/all, and the current stage
    step: str
    loss: str
    left: str
    note: str


def run_states(runs: Sequence[SweepRun], jobs: Sequence[Job], *, queued: Mapping[str, Entry]) -> list[RunState]:
    """The state of every run. `queued`: job -> what a scheduler says of it, for the jobs that it was given."""
    job_of = {directory: job for job in jobs for directory in job.directories}
    return [_run_state(run, job_of, queued=queued) for run in runs]


def _run_state(run: SweepRun, job_of: Mapping[Path, Job], *, queued: Mapping[str, Entry]) -> RunState:
    left = [stage for stage in run.stages if not is_finished(run.directories[stage.name])]
    counted = f"{len(run.stages) - len(left)}/{len(run.stages)}"
    if not left:
        loss = _progress(run.stages[-1], run.directories[run.stages[-1].name])[1]
        return RunState(run.name, "finished", counted, "", loss, "", "")
    stage = left[0]
    directory = run.directories[stage.name]
    job = job_of[directory]
    tries = job.attempts
    step, loss, eta = _progress(stage, directory)
    state, note = _state(job, tries, directory=directory, queued=queued)
    notes = [f"attempt {len(tries)}" if len(tries) > 1 else "", job.name if job.name != run.name else "", note]
    note = " ".join(filter(None, notes))
    return RunState(run.name, state, f"{counted} {stage.name}", step, loss, eta if state == "running" else "", note)


def _state(
    job: Job, tries: Sequence[Mapping[str, Any]], *, directory: Path, queued: Mapping[str, Entry]
) -> tuple[str, str]:
    entry = queued.get(job.name)
    ended = not tries or "ended" in tries[-1]
    if entry and entry.queued and ended:
        return "queued", entry.describe()
    if entry and not entry.queued and (not tries or "ended" not in tries[-1]):
        return "failed", f"{entry.describe()}; run the sweep again to submit it"
    if not tries:
        return "waiting", ""
    if "ended" in tries[-1]:
        error = tries[-1]["error"]
        stopped = tries[-1]["status"] == 0 or was_stopped(tries[-1]["status"])
        return ("waiting", "") if not error else ("stopped" if stopped else "failed", error)
    written = (job.log, directory / METRICS_FILE)
    silent = time.time() - max(path.stat().st_mtime for path in written if path.exists())
    if silent > _SILENT_SECONDS:
        return "silent", f"nothing written for {duration(silent)}; started on {tries[-1]['host']}"
    return "running", ""


def _progress(stage: Stage, directory: Path) -> tuple[str, str, str]:
    """Step of all steps, loss and time left of a training stage; empty texts for any other stage."""
    row = _last_row(directory / METRICS_FILE)
    if row is None:
        return "", "", ""
    eta = row.get("eta")
    return (
        f"{row['step']:,}/{stage.config.train.steps:,}",
        number(row.get("loss")),
        duration(eta) if isinstance(eta, int | float) else "",
    )


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


def status_table(states: Sequence[RunState]) -> str:
    """The states in columns, below a line with the number of runs in each state."""
    names = [state.state for state in states]
    counts = ", ".join(f"{names.count(name)} {name}" for name in dict.fromkeys(names))
    heading = RunState("run", "state", "stage", "step", "loss", "left", "note")
    cells = [dataclasses.astuple(row) for row in (heading, *states)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]
    return "\n".join([f"{len(states)} runs: {counts}", *lines])


def watch(read: Callable[[], list[RunState]]) -> None:
    """Prints the table. At a terminal it refreshes the table in place until all runs have ended or Ctrl-C comes."""
    while True:
        states = read()
        live = sys.stderr.isatty()
        sys.stderr.write(("\x1b[H\x1b[2J" if live else "") + status_table(states) + "\n")
        sys.stderr.flush()
        if not live or all(state.state in ("finished", "stopped", "failed") for state in states):
            return
        time.sleep(_REFRESH_SECONDS)
