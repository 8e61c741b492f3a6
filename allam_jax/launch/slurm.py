"""Launcher `slurm`: the jobs of a sweep as Slurm arrays, through submitit.

Jobs that wait for the same others make one array, which depends on them. On every host `srun` starts a small process
that runs the job's command and waits. When Slurm announces the end (SIGUSR1: preemption, or the time limit comes near)
it sends the command SIGTERM, which saves and ends, and the job is requeued: it goes on where it was, bit for bit.
"""

import dataclasses
import difflib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import logging

from allam_jax.errors import UserError
from allam_jax.files import read_json, write_json
from allam_jax.launch import attempts
from allam_jax.launch.jobs import ROOT, Job

SIGNAL = "USR1"
RECORD = "slurm.json"  # job -> Slurm id, of the last submission
_DEFAULTS: dict[str, Any] = {"time": 24 * 60, "nodes": 1, "tasks_per_node": 1, "signal_delay_s": 120}
_MAX_REQUEUES = 1000  # at a time limit; a run goes on where it was, so that many are no sign of trouble
_LOOK_EVERY_SECONDS = 0.2
# Slurm signals every process of a step. The command must not die of what is meant for its parent.
_WITHOUT_THE_SIGNAL = ("sh", "-c", f"trap '' {SIGNAL}; exec \"$@\"", "sh")


class JobFailed(RuntimeError):
    """The job's command failed in every attempt."""


class JobStopped(RuntimeError):
    """The job's command was stopped by somebody else than Slurm, and saved."""


@dataclasses.dataclass
class SlurmTask:
    """What runs under srun, once for each task of the job; submitit pickles it, and calls `checkpoint` at the signal.

    Attributes:
        job: to run.
        folder: of logs and records.
        environment: variables of the command.
        retries: further attempts when the command fails.
    """

    job: Job
    folder: Path
    environment: Mapping[str, str]
    retries: int
    _attempt: attempts.Attempt | None = dataclasses.field(default=None, init=False)

    def __call__(self) -> None:
        """Runs the job's command until it has done its stages. JobFailed, JobStopped."""
        rank = int(os.environ.get("SLURM_PROCID", "0"))
        folder = self.folder if rank == 0 else self.folder / "ranks" / str(rank)
        for attempt in range(self.retries + 1):
            self._attempt = attempts.start(
                self.job, folder=folder, environment=self.environment, before=_WITHOUT_THE_SIGNAL
            )
            while not self._attempt.ended():
                time.sleep(_LOOK_EVERY_SECONDS)
            status = self._attempt.process.returncode
            if self.job.finished or (rank and status == 0):
                return
            if status == 0:
                raise JobStopped(f"{self.job.name} was stopped; submit the sweep again to go on")
            if status == attempts.USER_ERROR or attempt == self.retries:
                break
        error = attempts.read_attempts(folder, self.job.name)[-1]["error"]
        raise JobFailed(f"{self.job.name}: {error} (log: {attempts.log_path(folder, self.job.name)})")

    def checkpoint(self) -> Any:
        """Lets the command save and end; what to run after the requeue."""
        import submitit

        if self._attempt is not None:
            if not self._attempt.ended():
                self._attempt.process.send_signal(signal.SIGTERM)  # JAX's preemption service tells the other hosts
                self._attempt.process.wait()
            self._attempt.ended()
        again = SlurmTask(self.job, self.folder, self.environment, self.retries)
        return submitit.helpers.DelayedSubmission(again)


def submit(
    jobs: Sequence[Job],
    *,
    folder: Path,
    environment: Mapping[str, Mapping[str, str]],
    retries: int,
    options: Mapping[str, Any],
    name: str,
) -> dict[str, str]:
    """Submits what has not finished and is not in the queue yet.

    Args:
        jobs: of the sweep, in an order in which none comes before what it waits for.
        folder: of logs and records; on a file system that all hosts share.
        environment: job -> variables of its own.
        retries: further attempts at a job that fails.
        options: of submitit's Slurm executor, from `parse_options`.
        name: of the sweep, shown in the queue.

    Returns:
        Job -> Slurm id, of all that are in the queue now.
    """
    executor_class = _executor_class()
    ids: dict[str, str] = {job: slurm_id for job, (slurm_id, _) in queue(folder).items()}
    arrays: dict[tuple[str, ...], list[Job]] = {}
    for job in jobs:
        if not job.finished and job.name not in ids:
            arrays.setdefault(job.after, []).append(job)
    for after, members in arrays.items():
        executor = executor_class(folder=folder / "slurm", max_num_timeout=_MAX_REQUEUES)
        try:
            executor.update_parameters(
                **_parameters(options, after=[ids[other] for other in after if other in ids], name=name)
            )
        except (ValueError, TypeError) as error:
            raise UserError(f"--slurm: {' '.join(str(error).split())}") from None
        with executor.batch():
            handles = [executor.submit(SlurmTask(job, folder, dict(environment[job.name]), retries)) for job in members]
        for job, handle in zip(members, handles, strict=True):
            ids[job.name] = handle.job_id
            logging.info("submitted %s as Slurm job %s", job.name, handle.job_id)
        write_json(folder / RECORD, ids)
    return ids


def queue(folder: Path) -> dict[str, tuple[str, str]]:
    """Job -> (Slurm id, state) of those of the last submission that are in Slurm's queue; {} without Slurm."""
    if not (folder / RECORD).is_file():
        return {}
    ids = read_json(folder / RECORD)
    try:
        listed = subprocess.run(
            ["squeue", "--noheader", "--array", "--format=%i %T", f"--jobs={','.join(sorted(set(ids.values())))}"],
            capture_output=True,
            text=True,
            timeout=60,
        )
    except (OSError, subprocess.TimeoutExpired):
        return {}
    states = dict(line.split() for line in listed.stdout.splitlines() if len(line.split()) == 2)
    return {job: (slurm_id, states[slurm_id]) for job, slurm_id in ids.items() if slurm_id in states}


def parse_options(texts: Sequence[str]) -> dict[str, Any]:
    """`KEY=VALUE` texts as options of submitit's Slurm executor. UserError for one that it does not know."""
    known = sorted(_executor_class()._valid_parameters() | {"tasks_per_node"})
    options: dict[str, Any] = {}
    for text in texts:
        key, separator, value = text.partition("=")
        if not separator:
            raise UserError(f"--slurm {text}: expected KEY=VALUE, such as nodes=2")
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(known)}"
            raise UserError(f"--slurm {text}: no option is called {key!r}; {hint}")
        options[key] = int(value) if value.isdigit() else value
    return options


def _parameters(options: Mapping[str, Any], *, after: Sequence[str], name: str) -> dict[str, Any]:
    parameters = _DEFAULTS | dict(options)
    parameters["ntasks_per_node"] = parameters.pop("tasks_per_node")
    parameters["job_name"] = name
    parameters["setup"] = [f"export SUBMITIT_PREEMPT_SIGNAL={SIGNAL}", f"export PYTHONPATH={ROOT}:$PYTHONPATH"]
    parameters["additional_parameters"] = {"requeue": True, "open-mode": "append"}
    if after:
        parameters["dependency"] = f"afterok:{':'.join(after)}"
        parameters["additional_parameters"]["kill-on-invalid-dep"] = "yes"
    return parameters


def _executor_class() -> Any:
    """submitit's executor, told before its import which signal Slurm is to send."""
    os.environ["SUBMITIT_PREEMPT_SIGNAL"] = SIGNAL
    try:
        from submitit.slurm.slurm import SlurmExecutor
    except ImportError:
        raise UserError("--launcher=slurm needs the package submitit; run `pip install submitit`") from None
    if shutil.which("srun") is None:
        raise UserError("--launcher=slurm: there is no srun here; start it on a host of the cluster, or use local")
    return SlurmExecutor
