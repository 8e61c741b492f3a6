"""What a sweep will do, before it does it: its runs, its jobs, the tokens they train on and what that will cost."""

import re
from collections.abc import Iterable, Sequence

from allam_jax.ablation.experiment import Experiment
from allam_jax.errors import UserError
from allam_jax.launch.jobs import Job
from allam_jax.launch.runs import Run, differing
from allam_jax.planning.gpu_cluster import cluster_of
from allam_jax.planning.run_plan import Energy, Plan, analytic_plan
from allam_jax.report.markdown import number, table
from allam_jax.tasks.recipe import Stage
from allam_jax.training.run_description import described_run


def preview(experiment: Experiment, runs: Sequence[Run], jobs: Sequence[Job]) -> str:
    """The runs, how each differs from the first, and the jobs that compute them, as text.

    The cost is that of task `plan`, by formulas, on the cluster of each training stage's `plan` section.
    """
    plans, unknown = _plans(runs)
    run_rows = []
    for run in runs:
        row = {
            "run": run.name,
            "state": "finished" if run.finished else "",
            "tokens to train": number(sum(training_tokens(stage) for stage in run.stages)),
        }
        if not unknown:
            row["GPU-hours"] = number(sum(plan.gpu_hours for plan in _of(run.stages, plans)))
        changed = ", ".join(line.removeprefix("stage.") for line in differing(runs[0], run))
        row["differs from the first in"] = changed or "–"
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
    blocks = [experiment.title, experiment.claim]
    blocks += [table(rows, list(rows[0])) for rows in (run_rows, job_rows)]
    return "\n\n".join([*blocks, _total(jobs, plans, unknown)])


def training_tokens(stage: Stage) -> int:
    """Tokens that a training stage sees; 0 for any other stage. A branch begins at the step of its checkpoint."""
    config = stage.config
    if config.task != "train":
        return 0
    parent = re.search(r"checkpoints/(\d+)/?$", config.init.weights) if config.init.step else None
    steps = config.train.steps - (int(parent[1]) if parent else 0)
    return max(steps, 0) * config.data.batch_size * config.data.seq_len


def _plans(runs: Sequence[Run]) -> tuple[dict[str, Plan], str]:
    """Fingerprint -> the plan of each training stage, or why there is none."""
    plans: dict[str, Plan] = {}
    for run in runs:
        for stage in run.stages:
            if stage.config.task != "train" or stage.fingerprint in plans:
                continue
            section = stage.config.plan
            try:
                cluster = cluster_of(section)
                layout = described_run(stage.config, device_count=cluster.size)
                energy = Energy(power_share=section.power_share, pue=section.pue)
                tokens = training_tokens(stage)
                plans[stage.fingerprint] = analytic_plan(layout, cluster=cluster, tokens=tokens, energy=energy)
            except UserError as error:
                return {}, f"stage {stage.name}: {error}"
    return plans, ""


def _total(jobs: Sequence[Job], plans: dict[str, Plan], unknown: str) -> str:
    if unknown:
        return f"Cost unknown: {unknown}"
    todo = _of((stage for job in jobs if not job.finished for stage in job.stages), plans)
    clusters = dict.fromkeys(plan.cluster.describe() for plan in todo)
    if not todo:
        return "Nothing is left to train."
    hours, energy = sum(plan.gpu_hours for plan in todo), sum(plan.megawatt_hours for plan in todo)
    return (
        f"Left to train: {number(hours)} GPU-hours and {number(energy)} MWh on {' and '.join(clusters)}, by formulas "
        "(task plan); shared stages counted once."
    )


def _of(stages: Iterable[Stage], plans: dict[str, Plan]) -> list[Plan]:
    return [plans[stage.fingerprint] for stage in stages if stage.fingerprint in plans]
