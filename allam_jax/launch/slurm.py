"""Launcher `slurm`: submits the jobs of a sweep as Slurm arrays, through submitit.

Jobs that wait for the same other jobs form one array, which depends on them. On every host `srun` starts a small
process that runs the job's command. Slurm announces preemption and the time limit with SIGUSR1. The process then sends
SIGTERM to the command, which saves and ends. The job is requeued and continues from there, bit for bit.
"""

import dataclasses
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import logging

from allam_jax.errors import UserError, nearest
from allam_jax.files import read_json, write_json
from allam_jax.launch import attempts
from allam_jax.launch.jobs import ROOT, Job

SIGNAL = "USR1"
RECORD = "slurm.json"  # job -> Slurm id of the last submission
_DEFAULTS: dict[str, Any] = {"time": 24 * 60, "nodes": 1, "tasks_per_node": 1, "signal_delay_s": 120}
_MAX_REQUEUES = 1000  # after a time limit; a run continues where it was, so many requeues are no failure
_LOOK_EVERY_SECONDS = 0.2
# Slurm signals every process of a step. The command must ignore the signal, which is for its parent.
_WITHOUT_THE_SIGNAL = ("sh", "-c", f"trap '' {SIGNAL}; exec \"$@\"", "sh")


class JobFailed(RuntimeError):
    """The job's command failed in every attempt."""


class JobStopped(RuntimeError):
    """Somebody other than Slurm stopped the job's command, which has saved."""


@dataclasses.dataclass
class SlurmTask:
    """The callable of each Slurm task. submitit pickles it and calls `checkpoint` when the signal comes.

    The job's folder is on a file system that all hosts share. If the command fails, it gets `retries` further attempts.
    """

    job: Job
    retries: int
    _attempt: attempts.Attempt | None = dataclasses.field(default=None, init=False)

    def __call__(self) -> None:
        """Runs the job's command until its stages have finished. Raises JobFailed or JobStopped."""
        rank = int(os.environ.get("SLURM_PROCID", "0"))
        job = dataclasses.replace(self.job, folder=self.job.folder / "ranks" / str(rank)) if rank else self.job
        for attempt in range(self.retries + 1):
            self._attempt = attempts.start(job, before=_WITHOUT_THE_SIGNAL)
            while not self._attempt.ended():
                time.sleep(_LOOK_EVERY_SECONDS)
            status = self._attempt.process.returncode
            if job.finished or (rank and status == 0):
                return
            if status == 0:
                raise JobStopped(f"{job.name} was stopped; submit the sweep again to continue")
            if status == attempts.USER_ERROR or attempt == self.retries:
                break
        raise JobFailed(f"{job.name}: {job.attempts[-1]['error']} (log: {job.log})")

    def checkpoint(self) -> Any:
        """Asks the command to save and waits for its end. Returns what to run after the requeue."""
        import submitit

        if self._attempt is not None:
            if not self._attempt.ended():
                self._attempt.process.send_signal(signal.SIGTERM)  # JAX's preemption service tells the other hosts
                self._attempt.process.wait()
            self._attempt.ended()
        return submitit.helpers.DelayedSubmission(SlurmTask(self.job, self.retries))


def submit(jobs: Sequence[Job], *, retries: int, options: Mapping[str, Any], name: str) -> dict[str, str]:
    """Submits the jobs that have not finished and are not in the queue.

    There must be at least one job, and each must come after the jobs that it waits for. A job that fails gets `retries`
    further attempts. `options` are those of submitit's Slurm executor, and `name` is that of the sweep in the queue.
    Returns job -> Slurm id, for all jobs in the queue.

    Raises:
        UserError: submitit or srun is missing, or submitit rejects an option.
    """
    executor_class, folder = _executor_class(), jobs[0].folder
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
            handles = [executor.submit(SlurmTask(job, retries)) for job in members]
        for job, handle in zip(members, handles, strict=True):
            ids[job.name] = handle.job_id
            logging.info("submitted %s as Slurm job %s", job.name, handle.job_id)
        write_json(folder / RECORD, ids)
    return ids


def queue(folder: Path) -> dict[str, tuple[str, str]]:
    """Job -> (Slurm id, state), for the jobs of the last submission in Slurm's queue. Empty without Slurm."""
    if not (folder / RECORD).is_file():
        return {}
    ids = read_json(folder / RECORD, kind=dict)
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
    """The options of submitit's Slurm executor from texts `KEY=VALUE`. Raises UserError for an unknown option."""
    known = sorted(_executor_class()._valid_parameters() | {"tasks_per_node"})
    options: dict[str, Any] = {}
    for text in texts:
        key, separator, value = text.partition("=")
        if not separator:
            raise UserError(f"--slurm {text}: expected KEY=VALUE, such as nodes=2")
        if key not in known:
            raise UserError(f"--slurm {text}: no option is called {key!r}; {nearest(key, known)}")
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
    """submitit's Slurm executor. The variable with the signal must be set before the import."""
    os.environ["SUBMITIT_PREEMPT_SIGNAL"] = SIGNAL
    try:
        from submitit.slurm.slurm import SlurmExecutor
    except ImportError:
        raise UserError("--launcher=slurm needs the package submitit; run `pip install submitit`") from None
    if shutil.which("srun") is None:
        raise UserError("--launcher=slurm: srun is not on the path; run this on a host of the cluster, or use local")
    return SlurmExecutor
