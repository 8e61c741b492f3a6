"""The preview of a sweep: its runs, its jobs, the tokens to train and the predicted cost."""

import re
from collections.abc import Iterable, Sequence

from allam_jax.ablation.experiment import Experiment
from allam_jax.config import differences
from allam_jax.errors import UserError
from allam_jax.launch.jobs import Job
from allam_jax.launch.runs import SweepRun
from allam_jax.planning.gpu_cluster import cluster_of
from allam_jax.planning.run_plan import RunPlan
from allam_jax.report.markdown import number, table
from allam_jax.settings import as_dict
from allam_jax.tasks.recipe import Stage
from allam_jax.tasks.registry import settings_of
from allam_jax.training.run_description import described_run


def preview(experiment: Experiment, runs: Sequence[SweepRun], jobs: Sequence[Job]) -> str:
    """A text with the runs, the differences of each to the first, the jobs that compute them, and the cost.

    The cost is that of task `plan`, by formulas, on the cluster of each training stage's `plan` section.
    """
    plans, unknown = _plans(runs)
    first = as_dict(runs[0].config)
    run_rows = []
    for run in runs:
        row = {
            "run": run.name,
            "state": "finished" if run.finished else "",
            "tokens to train": number(sum(training_tokens(stage) for stage in run.stages)),
        }
        if not unknown:
            row["GPU-hours"] = number(sum(plan.gpu_hours for plan in _of(run.stages, plans)))
        changed = [line.removeprefix("stage.") for line in differences(first, as_dict(run.config))]
        row["differs from the first in"] = ", ".join(changed) or "–"
        run_rows.append(row)
    job_rows = [
        {
            "job": job.name,
            "for": f"{len(job.runs)} runs" if len(job.runs) > 1 else "1 run",
            "state": "finished" if job.finished else "",
            "stages": ", ".join(stage.name for stage in job.stages),
            "after": ", ".join(job.after) or "–",
        }
        for job in jobs
    ]
    tables = [table(rows) for rows in (run_rows, job_rows)]
    return "\n\n".join([experiment.title, experiment.claim, *tables, _total(jobs, plans, unknown)])


def training_tokens(stage: Stage) -> int:
    """The tokens that a training stage sees; 0 for any other stage. A branch begins at the step of its checkpoint."""
    config = stage.config
    if config.task != "train":
        return 0
    parent = re.search(r"checkpoints/(\d+)/?$", config.init.weights) if config.init.step else None
    steps = config.train.steps - (int(parent[1]) if parent else 0)
    return max(steps, 0) * config.data.batch_size * config.data.seq_len


def _plans(runs: Sequence[SweepRun]) -> tuple[dict[str, RunPlan], str]:
    """Fingerprint -> plan of each training stage, and the reason if there are no plans."""
    plans: dict[str, RunPlan] = {}
    for run in runs:
        for stage in run.stages:
            if stage.config.task != "train" or stage.fingerprint in plans:
                continue
            try:
                settings = settings_of(stage.config, task="plan")
                cluster = cluster_of(settings.plan)
                layout = described_run(settings, device_count=cluster.size)
                plans[stage.fingerprint] = RunPlan(run=layout, cluster=cluster, tokens=training_tokens(stage))
            except UserError as error:
                return {}, f"stage {stage.name}: {error}"
    return plans, ""


def _total(jobs: Sequence[Job], plans: dict[str, RunPlan], unknown: str) -> str:
    if unknown:
        return f"Cost unknown: {unknown}"
    todo = _of((stage for job in jobs if not job.finished for stage in job.stages), plans)
    if not todo:
        return "Nothing is left to train."
    clusters = " and ".join(dict.fromkeys(plan.cluster.describe() for plan in todo))
    hours, energy = sum(plan.gpu_hours for plan in todo), sum(plan.megawatt_hours for plan in todo)
    return (
        f"Left to train: {number(hours)} GPU-hours and {number(energy)} MWh on {clusters}, by formulas (task plan). "
        "Shared stages count once."
    )


def _of(stages: Iterable[Stage], plans: dict[str, RunPlan]) -> list[RunPlan]:
    return [plans[stage.fingerprint] for stage in stages if stage.fingerprint in plans]
