"""Runs the pipeline's stages through datatrove's executors: in local processes, on Slurm or on Ray.

A stage is a list of steps and a number of tasks. Each task leaves a marker file when it ends, so that a later run does
not repeat it.
"""

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import multiprocess
from absl import logging
from datatrove.executor.base import DistributedEnvVars, PipelineExecutor
from datatrove.executor.local import LocalPipelineExecutor
from datatrove.executor.ray import RayPipelineExecutor
from datatrove.executor.slurm import SlurmPipelineExecutor
from datatrove.pipeline.base import PipelineStep

from allam_jax.corpus.settings import ExecutorSettings
from allam_jax.errors import UserError

Stages = Sequence[tuple[str, Sequence[PipelineStep], int]]  # name, steps and number of tasks of each

_ROOT = Path(__file__).resolve().parents[2]
_POLL_SECONDS = 5.0


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
            with multiprocess.get_context("forkserver").Pool(workers) as pool:
                for _ in pool.imap_unordered(self._run_for_rank, ranks):
                    pass
            return
        for rank in ranks:
            deepcopy(self)._run_for_rank(rank)


class _Slurm(SlurmPipelineExecutor):
    """Datatrove's Slurm executor, without its job for statistics, and without the command scontrol on the nodes."""

    def launch_merge_stats(self) -> None:
        pass

    def get_distributed_env(self, node_rank: int = -1) -> DistributedEnvVars:
        return DistributedEnvVars(
            datatrove_node_ips=os.environ.get("SLURM_JOB_NODELIST", ""),
            datatrove_cpus_per_task=str(self.cpus_per_task),
            datatrove_mem_per_cpu=str(self.mem_per_cpu_gb),
            datatrove_gpus_on_node="0",
            datatrove_executor="SLURM",
        )


def _run_on_slurm(stages: Stages, *, logs: Path, settings: ExecutorSettings) -> None:
    """Submits all stages, each to start when the stage before it has succeeded; waits for the last."""
    search_path = f"{Path(sys.executable).parent}:$PATH"
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
        )
        executors.append((name, previous))
    try:
        executors[-1][1].run()
    except (FileNotFoundError, subprocess.CalledProcessError) as error:
        raise UserError(f"sbatch failed ({error}); run this on a machine that can submit Slurm jobs") from None
    for name, executor in executors:
        while executor.job_id not in (None, -1) and executor.get_incomplete_ranks(skip_completed=True):
            if not _is_queued(str(executor.job_id)):
                break
            time.sleep(_POLL_SECONDS)
        _check(executor, name=name, logs=logs)
        logging.info("corpus: %s done", name)


def _is_queued(job: str) -> bool:
    shown = subprocess.run(["squeue", f"--jobs={job}", "--noheader"], capture_output=True, text=True, check=False)
    return shown.returncode == 0 and bool(shown.stdout.strip())


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
        ray.init(include_dashboard=False, **options)
