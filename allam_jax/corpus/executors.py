"""Runs the pipeline's stages through datatrove's executors: in local processes, on Slurm or on Ray.

A stage is a list of steps and a number of tasks. Each task leaves a marker file when it ends, so that a later run does
not repeat it.
"""

import contextlib
import logging as stdlib_logging
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, TextIO

import multiprocess
from absl import logging
from datatrove.executor.base import DistributedEnvVars, PipelineExecutor
from datatrove.executor.local import LocalPipelineExecutor
from datatrove.executor.ray import RayPipelineExecutor
from datatrove.executor.slurm import SlurmPipelineExecutor
from datatrove.pipeline.base import PipelineStep

from allam_jax import slurm_queue
from allam_jax.corpus.settings import ExecutorSettings
from allam_jax.errors import UserError
from allam_jax.files import read_json, write_json

Stages = Sequence[tuple[str, Sequence[PipelineStep], int]]  # name, steps and number of tasks of each

_ROOT = Path(__file__).resolve().parents[2]
_POLL_SECONDS = 5.0
_SLURM_RECORD = "slurm_jobs.json"  # the jobs of a run that has not ended
_ORDINARY = {"pending", "pending: Dependency", "pending: Priority", "pending: JobArrayTaskLimit"}
# Reasons that no waiting removes.
_NEVER = {
    *("PartitionTimeLimit", "PartitionNodeLimit", "BadConstraints", "InvalidAccount"),
    *("InvalidQOS", "QOSNotAllowed", "AccountNotAllowed", "AssociationTimeLimit", "QOSTimeLimit"),
}
_ORPHANED = "DependencyNeverSatisfied"  # Slurm is about to remove it: an earlier stage has failed
_RAY_SECONDS = 25


def run_stages(stages: Stages, *, logs: Path, settings: ExecutorSettings) -> None:
    """Runs the stages one after another; returns when all their tasks have ended.

    `logs` gets a folder of markers, logs and batch scripts for each stage. UserError if a task did not end; the message
    names its log. Errors that tasks raise pass through.
    """
    if settings.kind == "slurm":
        _run_on_slurm(stages, logs=logs, settings=settings)
        return
    for name, steps, tasks in stages:
        options = {"tasks": tasks, "workers": settings.workers, "logging_dir": str(logs / name)}
        if settings.kind == "local":
            executor: PipelineExecutor = _Local(list(steps), **options)
        else:
            _start_ray(settings)
            executor = RayPipelineExecutor(list(steps), mem_per_cpu_gb=settings.memory_gb, **options)
        executor.run()
        _check(executor, name=name, logs=logs)
        logging.info("corpus: %s done (%d tasks)", name, tasks)


class _Local(LocalPipelineExecutor):
    """Datatrove's local executor, without its manager process, and without a pool where one worker is enough."""

    def run(self) -> None:
        ranks = self.get_incomplete_ranks()
        workers = min(self.workers, len(ranks))
        if workers > 1:
            # A fork is unsafe here, because this process may have threads, such as JAX's.
            try:
                with multiprocess.get_context("forkserver").Pool(workers) as pool:
                    for _ in pool.imap_unordered(self._run_for_rank, ranks):
                        pass
            except BaseException:
                # The process may end without Python's own exit: the library would then report leaked semaphores.
                multiprocess.util._exit_function()
                raise
            return
        for rank in ranks:
            deepcopy(self)._run_for_rank(rank)


class _Slurm(SlurmPipelineExecutor):
    """Datatrove's Slurm executor, without its job for statistics, without scontrol on the nodes, and with any path."""

    def launch_merge_stats(self) -> None:
        pass

    def get_sbatch_args(self, max_array: int = 1) -> dict[str, Any]:
        # Slurm takes % for a pattern; %% is the character.
        found = super().get_sbatch_args(max_array)
        log = f"{str(self.slurm_logs_folder).replace('%', '%%')}/%A_%a.out"
        return {key: shlex.quote(str(value)) for key, value in (found | {"output": log, "error": log}).items()}

    def get_launch_file_contents(self, sbatch_args: dict[str, Any], run_script: str) -> str:
        pickled = str(self.logging_dir.resolve_paths("executor.pik"))
        sbatch_args = {key: "" if value == "''" else value for key, value in sbatch_args.items()}
        return super().get_launch_file_contents(sbatch_args, run_script.replace(pickled, shlex.quote(pickled)))

    def get_distributed_env(self, node_rank: int = -1) -> DistributedEnvVars:
        return DistributedEnvVars(
            datatrove_node_ips=os.environ.get("SLURM_JOB_NODELIST", ""),
            datatrove_cpus_per_task=str(self.cpus_per_task),
            datatrove_mem_per_cpu=str(self.mem_per_cpu_gb),
            datatrove_gpus_on_node="0",
            datatrove_executor="SLURM",
        )


def _run_on_slurm(stages: Stages, *, logs: Path, settings: ExecutorSettings) -> None:
    """Submits all stages, each to start when the stage before it has succeeded; waits for the last.

    Jobs that an earlier call has left in the queue are cancelled first. Each task that has ended has left its marker,
    so nothing is computed twice. Jobs of this call are cancelled if it ends before they do.
    """
    record = logs / _SLURM_RECORD
    _cancel_recorded(record)
    search_path = f"{shlex.quote(str(Path(sys.executable).parent))}:$PATH"
    submitted: list[str] = []

    def job_id(printed: str) -> str:
        submitted.append(printed.split()[-1])
        write_json(record, submitted)
        return submitted[-1]

    previous = None
    executors = []
    for name, steps, tasks in stages:
        previous = _Slurm(
            list(steps),
            tasks=tasks,
            workers=settings.workers,
            time=settings.time,
            partition=settings.partition,
            cpus_per_task=settings.cpus,
            mem_per_cpu_gb=settings.memory_gb,
            job_name=f"corpus-{name}",
            qos=settings.qos,
            # Without this option, a job that depends on a failed job waits for ever.
            sbatch_args={"kill-on-invalid-dep": "yes", **dict(option.split("=", 1) for option in settings.options)},
            env_command=f"export PATH={search_path} PYTHONPATH={shlex.quote(str(_ROOT))}:$PYTHONPATH",
            logging_dir=str(logs / name),
            depends=previous,
            with_srun=False,
            requeue_signals=None,
            max_array_size=slurm_queue.max_array_size(),
            job_id_retriever=job_id,
        )
        executors.append((name, previous))
    try:
        _submit(executors[-1][1])
        for name, executor in executors:
            _wait_for(executor, name=name, jobs=submitted)
            _check(executor, name=name, logs=logs)
            logging.info("corpus: %s done", name)
    except BaseException:
        _cancel_recorded(record)
        raise
    record.unlink(missing_ok=True)


def _submit(executor: _Slurm) -> None:
    try:
        with tempfile.TemporaryFile("w+") as said, _stderr_to(said):
            try:
                executor.run()
            except subprocess.CalledProcessError:
                said.seek(0)
                raise UserError(f"sbatch refused the jobs: {slurm_queue.refusal(said.read())}") from None
    except FileNotFoundError as error:
        raise UserError(f"sbatch failed ({error}); run this on a machine that can submit Slurm jobs") from None


@contextlib.contextmanager
def _stderr_to(file: TextIO) -> Iterator[None]:
    """Catches what programs started inside print to standard error: datatrove does not keep it."""
    kept = os.dup(2)
    os.dup2(file.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _wait_for(executor: _Slurm, *, name: str, jobs: Sequence[str]) -> None:
    """Waits for a stage's tasks as long as a job of this run may still run; says why Slurm lets them wait."""
    said = ""
    while executor.job_id not in (None, -1) and executor.get_incomplete_ranks(skip_completed=True):
        try:
            entries = [
                entry for entry in slurm_queue.states_of_arrays(jobs) if entry.queued and entry.reason != _ORPHANED
            ]
        except UserError as error:  # unknown is not the same as empty
            logging.warning("corpus: %s: waiting; %s", name, error)
            time.sleep(_POLL_SECONDS)
            continue
        if not entries:
            return
        waits = sorted({entry.describe() for entry in entries if entry.state == "PENDING"} - _ORDINARY)
        if waits and waits != [said]:
            said = waits[0]
            logging.info("corpus: %s: %s", name, "; ".join(waits))
        if any(entry.reason in _NEVER for entry in entries):
            reason = next(entry.describe() for entry in entries if entry.reason in _NEVER)
            raise UserError(f"corpus: stage {name!r} can never start here ({reason}); change config.corpus.executor")
        time.sleep(_POLL_SECONDS)


def _cancel_recorded(record: Path) -> None:
    """Cancels the jobs of a record and removes it. If Slurm does not answer, the next start does it."""
    if record.is_file():
        try:
            slurm_queue.cancel(read_json(record))
        except UserError as error:
            logging.error("corpus: jobs %s may still be in the queue: %s", ", ".join(read_json(record)), error)
            return
        record.unlink(missing_ok=True)


def _check(executor: PipelineExecutor, *, name: str, logs: Path) -> None:
    missing = executor.get_incomplete_ranks(skip_completed=True)
    if missing:
        raise UserError(
            f"corpus: {len(missing)} of {executor.world_size} tasks of stage {name!r} did not end (the first is task "
            f"{missing[0]}); see their logs in {logs / name}, then run the same command again to run only these tasks"
        )


def _start_ray(settings: ExecutorSettings) -> None:
    try:
        import ray
    except ImportError:
        raise UserError("config.corpus.executor.kind = 'ray': Ray is not installed; pip install ray") from None
    if not ray.is_initialized():
        path = os.pathsep.join(filter(None, [str(_ROOT), os.environ.get("PYTHONPATH", "")]))
        options: dict[str, Any] = {"runtime_env": {"env_vars": {"PYTHONPATH": path}}, "log_to_driver": False}
        if settings.ray_address:
            options["address"] = settings.ray_address
            _check_ray(settings.ray_address, path=path)
        ray.init(include_dashboard=False, logging_level=stdlib_logging.WARNING, **options)


def _check_ray(address: str, *, path: str) -> None:
    """Joins the cluster in a process of its own, which can be given up: Ray waits for minutes, in C++, or aborts."""
    command = [sys.executable, "-c", f"import ray; ray.init(address={address!r}, log_to_driver=False)"]
    remedy = "check config.corpus.executor.ray_address, that the cluster runs, and its token (RAY_AUTH_TOKEN)"
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_RAY_SECONDS,
            env={**os.environ, "PYTHONPATH": path},
        )
    except subprocess.TimeoutExpired:
        raise UserError(f"Ray at {address!r} has not answered within {_RAY_SECONDS} s; {remedy}") from None
    if done.returncode:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        errors = [line for line in lines if "Error" in line.partition(":")[0]]
        raise UserError(
            f"Ray at {address!r} cannot be joined ({(errors or lines or ['no reason given'])[-1][:200]}); {remedy}"
        )
