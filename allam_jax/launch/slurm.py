"""Launcher `slurm`: submits the jobs of a sweep as Slurm arrays, through submitit.

Jobs that wait for the same other jobs form one array, which depends on them. On every host `srun` starts a small
process that runs the job's command. Slurm announces preemption and the time limit with SIGUSR1. The process then sends
SIGTERM to the command, which saves and ends. The job is requeued and continues from there, bit for bit.
"""

import dataclasses
import os
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import logging

from allam_jax import slurm_queue
from allam_jax.errors import PEER_ENDED, USER_ERROR, UserError, nearest, was_stopped
from allam_jax.files import cache_directory, read_json, sha256_of_json, write_json
from allam_jax.launch import attempts
from allam_jax.launch.jobs import ROOT, Job

SIGNAL = "USR1"
RECORD = "slurm.json"  # job -> Slurm id of the last submission
_DEFAULTS: dict[str, Any] = {"time": 24 * 60, "nodes": 1, "tasks_per_node": 1, "signal_delay_s": 120}
_MAX_REQUEUES = 1000  # after a time limit; a run continues where it was, so many requeues are no failure
_LOOK_EVERY_SECONDS = 0.2
_PEER_SECONDS = 60.0  # in which a requeue ends this task
# Slurm signals every process of a step. The command must ignore the signal, which is for its parent.
_WITHOUT_THE_SIGNAL = ("sh", "-c", f"trap '' {SIGNAL}; exec \"$@\"", "sh")


class JobFailed(RuntimeError):
    """The job's command failed in every attempt."""


class JobStopped(RuntimeError):
    """Somebody other than Slurm stopped the job's command, which has saved."""


@dataclasses.dataclass
class SlurmTask:
    """The callable of each Slurm task. submitit pickles it and calls `checkpoint` when the signal comes.

    The job's folder is on a file system that all hosts share. If the command fails, it gets `retries` further attempts:
    at once if the job has one task, and otherwise by a requeue of the whole job, because no task can go on alone.
    """

    job: Job
    retries: int
    submitted: float = dataclasses.field(default_factory=time.time)
    _attempt: attempts.Attempt | None = dataclasses.field(default=None, init=False)

    def __call__(self) -> None:
        """Runs the job's command until its stages have finished. Raises JobFailed or JobStopped."""
        rank, size = (
            int(os.environ.get(name, default)) for name, default in (("SLURM_PROCID", 0), ("SLURM_NTASKS", 1))
        )
        job = dataclasses.replace(self.job, folder=self.job.folder / "ranks" / str(rank)) if rank else self.job
        while True:
            self._attempt = attempts.start(job, before=_WITHOUT_THE_SIGNAL)
            while not self._attempt.ended():
                time.sleep(_LOOK_EVERY_SECONDS)
            status = self._attempt.process.returncode
            if job.finished or (rank and status == 0):
                return
            if status == 0 or was_stopped(status):
                raise JobStopped(f"{job.name} was stopped; submit the sweep again to continue")
            tried = [one for one in job.attempts if one["started"] >= self.submitted]
            failures = [one for one in tried if one.get("status") and not was_stopped(one["status"])]
            if status == USER_ERROR or len(failures) > self.retries:
                raise JobFailed(f"{job.name}: {job.attempts[-1]['error']} (log: {job.log})")
            if size > 1:
                self._requeue_all(waits=status == PEER_ENDED)

    def _requeue_all(self, *, waits: bool) -> None:
        """Ends all tasks of the job and queues it again; `waits` gives the task that failed first time to do it."""
        import submitit

        if waits:
            time.sleep(_PEER_SECONDS)
        slurm_queue.run(["scontrol", "requeue", submitit.JobEnvironment().job_id])
        time.sleep(_PEER_SECONDS)  # Slurm ends this process before

    def checkpoint(self) -> Any:
        """Asks the command to save and waits for its end. Returns what to run after the requeue."""
        import submitit

        if self._attempt is not None:
            if not self._attempt.ended():
                self._attempt.process.send_signal(signal.SIGTERM)  # the command tells those of the other tasks
                self._attempt.process.wait()
            self._attempt.ended()
        return submitit.helpers.DelayedSubmission(SlurmTask(self.job, self.retries, self.submitted))


def submit(jobs: Sequence[Job], *, retries: int, options: Mapping[str, Any], name: str) -> dict[str, str]:
    """Submits the jobs that have not finished and are not in the queue: all of them, or none.

    There must be at least one job, and each must come after the jobs that it waits for. A job that fails gets `retries`
    further attempts. `options` are those of submitit's Slurm executor, and `name` is that of the sweep in the queue.
    Returns job -> Slurm id, for all jobs in the queue.

    Raises:
        UserError: submitit or srun is missing, submitit rejects an option, sbatch refuses a job, or the state of the
            queue is unknown.
    """
    executor_class, folder = _executor_class(), jobs[0].folder
    ids = {job: entry.slurm_id for job, entry in queue(folder).items() if entry.queued}
    arrays: dict[tuple[str, ...], list[Job]] = {}
    for job in jobs:
        if not job.finished and job.name not in ids:
            arrays.setdefault(job.after, []).append(job)
    submitted: list[str] = []
    try:
        for after, members in arrays.items():
            waits_for = [ids[other] for other in after if other in ids]
            for handles, part in _submit_arrays(
                executor_class, members, waits_for, folder=folder, retries=retries, options=options, name=name
            ):
                submitted += handles
                ids |= dict(zip((job.name for job in part), handles, strict=True))
                write_json(folder / RECORD, ids)
    except BaseException:
        slurm_queue.cancel(submitted)
        write_json(folder / RECORD, {job: one for job, one in ids.items() if one not in submitted})
        raise
    for job_name, slurm_id in ids.items():
        if slurm_id in submitted:
            logging.info("submitted %s as Slurm job %s", job_name, slurm_id)
    return ids


def _submit_arrays(
    executor_class: Any,
    members: Sequence[Job],
    waits_for: Sequence[str],
    *,
    folder: Path,
    retries: int,
    options: Mapping[str, Any],
    name: str,
) -> Iterator[tuple[list[str], Sequence[Job]]]:
    """Submits jobs that wait for the same others, in arrays that are not too large; yields ids and jobs of each."""
    most = slurm_queue.max_array_size() if len(members) > 1 else 1
    before: list[str] = []
    for begin in range(0, len(members), most):
        part = members[begin : begin + most]
        place = _slurm_folder(folder)
        executor = executor_class(folder=place, max_num_timeout=_MAX_REQUEUES)
        # So that not more than `array_parallelism` jobs run at a time, an array waits for the one before it.
        after = [f"afterok:{':'.join(waits_for)}"] if waits_for else []
        after += [f"afterany:{':'.join(before)}"] if before and "array_parallelism" in options else []
        try:
            executor.update_parameters(**_parameters(options, after=after, name=name))
        except (ValueError, TypeError) as error:
            raise UserError(f"--slurm: {' '.join(str(error).split())}") from None
        try:
            with executor.batch():
                handles = [executor.submit(SlurmTask(job, retries)) for job in part]
        except (RuntimeError, OSError, subprocess.SubprocessError) as error:
            for left in [*place.glob(".submission_file_*"), *place.glob("?" * 32 + ".pkl")]:
                left.unlink(missing_ok=True)
            raise UserError(
                f"sbatch refused the jobs: {slurm_queue.refusal(str(error))}; nothing was submitted"
            ) from None
        before = [handle.job_id for handle in handles]
        yield before, part


def _slurm_folder(folder: Path) -> Path:
    """Where submitit's files lie. Slurm and submitit take `%` for a pattern: such a path gets a place without."""
    place = folder / "slurm"
    if "%" in str(place):
        place = cache_directory() / "slurm" / sha256_of_json(str(place))[:12]
    if "%" in str(place):
        raise UserError(f"--workdir {folder.parent}: Slurm takes % in a path for a pattern; use a path without")
    place.mkdir(parents=True, exist_ok=True)
    return place


def queue(folder: Path) -> dict[str, slurm_queue.Entry]:
    """Job -> what Slurm says of it, for the jobs of the last submission; {} if nothing was submitted.

    UserError if Slurm does not answer.
    """
    if not (folder / RECORD).is_file():
        return {}
    ids = read_json(folder / RECORD, kind=dict)
    found = slurm_queue.states(ids.values())
    return {job: found[slurm_id] for job, slurm_id in ids.items()}


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
    parameters["setup"] = [
        f"export SUBMITIT_PREEMPT_SIGNAL={SIGNAL}",
        f"export PYTHONPATH={shlex.quote(str(ROOT))}:$PYTHONPATH",
    ]
    parameters["srun_args"] = ["--kill-on-bad-exit=1"]  # no task of a step goes on without the others
    parameters["additional_parameters"] = {"requeue": True, "open-mode": "append"}
    if after:
        parameters["dependency"] = ",".join(after)
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
