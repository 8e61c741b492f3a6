"""Launcher `local`: runs a number of jobs at a time on this machine, each on its own cores and GPUs."""

import collections
import contextlib
import dataclasses
import os
import signal
import time
from collections.abc import Iterator, Mapping

from absl import logging

from allam_jax.errors import USER_ERROR, Stopped, UserError
from allam_jax.interrupts import StopRequest
from allam_jax.launch import attempts
from allam_jax.launch.attempts import Attempt
from allam_jax.launch.jobs import Job
from allam_jax.parallel.cluster import visible_gpus

_LOOK_EVERY_SECONDS = 0.2
_NOTICE = "stopping: the jobs at work are saving; Ctrl-C once more kills them"


@dataclasses.dataclass(frozen=True)
class Slot:
    """A share of the machine for one job at a time.

    Attributes:
        cores: the numbers of its CPU cores.
        gpus: the names of its GPUs for CUDA_VISIBLE_DEVICES; None leaves that variable unchanged.
    """

    cores: tuple[int, ...]
    gpus: tuple[str, ...] | None


def make_slots(number: int | None, *, gpus_per_job: int | None = None) -> list[Slot]:
    """Divides the cores and GPUs that this process may use into slots.

    Args:
        number: the number of jobs at a time. None gives one per `gpus_per_job` GPUs, and one without GPUs.
        gpus_per_job: None divides all GPUs evenly if `number` is given, and gives each job one GPU otherwise.

    Raises:
        UserError: this machine has too few cores or GPUs.
    """
    cores = sorted(os.sched_getaffinity(0))
    gpus = visible_gpus()
    if number is None:
        number = max(1, len(gpus) // (gpus_per_job or 1)) if gpus else 1
    if not 1 <= number <= len(cores):
        raise UserError(f"--jobs={number}: expected 1 to {len(cores)}, the number of CPU cores of this machine")
    share = gpus_per_job or len(gpus) // number
    if share * number > len(gpus) or (gpus and not share):
        raise UserError(
            f"--jobs={number}: jobs with {gpus_per_job or 1} GPUs each need more than the {len(gpus)} GPUs of this "
            "machine; reduce --jobs or --gpus_per_job"
        )
    ends = [len(cores) * index // number for index in range(number + 1)]
    return [
        Slot(tuple(cores[ends[i] : ends[i + 1]]), tuple(gpus[i * share : (i + 1) * share]) if gpus else None)
        for i in range(number)
    ]


def run_jobs(jobs: list[Job], *, slots: list[Slot], retries: int, detach: bool = False) -> dict[str, str]:
    """Runs the unfinished jobs in order. A job starts when a slot is free and the jobs before it have finished.

    A job that fails gets `retries` further attempts, unless a UserError ended it. If this process is killed, its jobs
    save and end, unless `detach` is given. Returns job -> reason, for every job
    that has not finished.

    Raises:
        Stopped: SIGTERM or Ctrl-C came. The running jobs have saved.
    """
    waiting = {job.name: job for job in jobs if not job.finished}
    left = collections.Counter({name: retries for name in waiting})
    running: dict[int, Attempt] = {}
    failed: dict[str, str] = {}
    with StopRequest(notices=dict.fromkeys(("SIGTERM", "SIGINT", "SIGHUP"), _NOTICE)) as stop:
        while waiting or running:
            _drop_blocked(waiting, failed)
            for index, slot in enumerate(slots):
                ready = next((job for job in waiting.values() if not _is_waiting_for(job, waiting, running)), None)
                if index in running or ready is None or stop.received:
                    continue
                del waiting[ready.name]
                logging.info("start %s (%s)", ready.name, ", ".join(stage.name for stage in ready.stages))
                gpus = {} if slot.gpus is None else {"CUDA_VISIBLE_DEVICES": ",".join(slot.gpus)}
                with _pinned(slot.cores):
                    running[index] = attempts.start(ready, environment=gpus, detach=detach)
            if stop.received:
                _stop(list(running.values()), stop)
                name = stop.received[0].replace("SIGINT", "Ctrl-C")
                said = f"{name}: {len(running)} jobs stopped; run the same command again to continue"
                raise Stopped(said, by=stop.received[0])
            time.sleep(_LOOK_EVERY_SECONDS)
            for index, attempt in list(running.items()):
                if attempt.ended():
                    del running[index]
                    _judge(attempt, waiting=waiting, failed=failed, left=left)
    return failed


def _judge(attempt: Attempt, *, waiting: dict[str, Job], failed: dict[str, str], left: dict[str, int]) -> None:
    job = attempt.job
    if job.finished:
        logging.info("done %s", job.name)
        return
    error = job.attempts[-1]["error"]
    if attempt.process.returncode == USER_ERROR or not left[job.name]:
        failed[job.name] = f"{error} (log: {job.log})"
        logging.error("failed %s: %s", job.name, failed[job.name])
        return
    left[job.name] -= 1
    waiting[job.name] = job
    logging.warning("failed %s: %s; starting it again (log: %s)", job.name, error, job.log)


def _is_waiting_for(job: Job, waiting: Mapping[str, Job], running: Mapping[int, Attempt]) -> bool:
    at_work = {attempt.job.name for attempt in running.values()}
    return any(name in waiting or name in at_work for name in job.after)


def _drop_blocked(waiting: dict[str, Job], failed: dict[str, str]) -> None:
    """Moves the jobs that need a failed job to `failed`; those that need them follow, because jobs are in order."""
    for name, job in list(waiting.items()):
        if blocker := next((other for other in job.after if other in failed), None):
            del waiting[name]
            failed[name] = f"needs {blocker}, which failed"


@contextlib.contextmanager
def _pinned(cores: tuple[int, ...]) -> Iterator[None]:
    """Pins the processes that are started inside to these cores: they inherit the affinity of this thread."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _stop(running: list[Attempt], stop: StopRequest) -> None:
    """Asks all jobs to save and waits for their ends. A second Ctrl-C kills them."""
    for attempt in running:
        attempt.process.send_signal(signal.SIGTERM)
    while not all([attempt.ended() for attempt in running]):
        if len(stop.received) > 1:
            for attempt in running:
                attempt.process.kill()
        time.sleep(_LOOK_EVERY_SECONDS)
