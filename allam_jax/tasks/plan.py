"""Task `plan`: what a training run will need on a cluster that is only described. No GPU, tokenizer or data is opened.

The workdir holds plan.json, plan.md and plan.png.
"""

import sys
from pathlib import Path
from typing import Any

from absl import logging
from ml_collections import ConfigDict

from allam_jax.errors import UserError
from allam_jax.files import write_json, write_text
from allam_jax.planning.compiled import compile_step
from allam_jax.planning.gpu_cluster import Cluster, cluster_of
from allam_jax.planning.plan_figure import draw
from allam_jax.planning.plan_report import markdown
from allam_jax.planning.run_plan import Energy, Plan, analytic_plan, compiled_plan
from allam_jax.planning.search import does_not_fit, ranked
from allam_jax.training.run_description import RunDescription, described_run

SHOWN = 12  # layouts of a search in the report


def run(config: ConfigDict, workdir: Path) -> dict[str, Any]:
    """Plans the run of a train config; returns the figures people ask for first. UserError if it does not fit."""
    # ---- what, and on what ----
    cluster = cluster_of(config.plan)
    wanted = described_run(config, device_count=cluster.size)
    if not config.plan.search:  # which looks for a mesh and an accumulation that suit the batch
        wanted.check_batch()
    tokens = config.plan.tokens or config.train.steps * wanted.tokens_per_step
    energy = Energy(power_share=config.plan.power_share, pue=config.plan.pue)

    def planned(layout: RunDescription) -> Plan:
        if not config.plan.compile:
            return analytic_plan(layout, cluster=cluster, tokens=tokens, energy=energy)
        step = compile_step(layout, cluster=cluster)
        logging.info("compiled %s in %.0f s", layout.describe(), step.seconds)
        return compiled_plan(layout, step, cluster=cluster, tokens=tokens, energy=energy)

    # ---- plan, or search ----
    candidates: list[Plan] = []
    if config.plan.search:
        candidates = _searched(wanted, cluster=cluster, tokens=tokens, energy=energy, planned=planned, config=config)
        plan = candidates[0]
    else:
        plan = planned(wanted)

    # ---- report ----
    figures = [(_label(each), each) for each in ([plan, *candidates[1:]] if candidates else [plan])][:6]
    draw(figures, workdir / "plan.png")
    report = markdown(plan, figure="plan.png", candidates=candidates[:SHOWN])
    write_text(workdir / "plan.md", report)
    write_json(workdir / "plan.json", plan.to_dict() | {"candidates": [each.to_dict() for each in candidates[:SHOWN]]})
    sys.stderr.write(report)
    if not plan.memory.fits:
        fitting = ranked(wanted, cluster=cluster, tokens=tokens, energy=energy)
        raise does_not_fit(plan.run, plan, plans=fitting)
    return {
        "step_seconds": round(plan.time.total, 3),
        "tokens_per_second_per_gpu": round(plan.tokens_per_second_per_gpu),
        "mfu": round(plan.mfu, 4),
        "memory_gib": round(plan.memory.total / 2**30, 2),
        "usable_gib": round(plan.memory.usable / 2**30, 2),
        "days": round(plan.days, 2),
        "gpu_hours": round(plan.gpu_hours),
        "megawatt_hours": round(plan.megawatt_hours, 1),
        "layout": plan.run.describe(),
        "compiled": plan.compiled is not None,
    }


def _searched(
    wanted: RunDescription, *, cluster: Cluster, tokens: float, energy: Energy, planned: Any, config: ConfigDict
) -> list[Plan]:
    """Layouts that fit, the fastest first; the best of them compiled."""
    by_formula = ranked(wanted, cluster=cluster, tokens=tokens, energy=energy)
    if not by_formula:
        plan = analytic_plan(wanted, cluster=cluster, tokens=tokens, energy=energy)
        raise does_not_fit(wanted, plan, plans=[])
    logging.info("%d layouts fit by formula", len(by_formula))
    best = [planned(plan.run) for plan in by_formula[: config.plan.search_compiles]]
    confirmed = sorted((plan for plan in best if plan.memory.fits), key=lambda plan: plan.time.total)
    if not confirmed:
        raise UserError(
            f"none of the {len(best)} best layouts fits when compiled; raise config.plan.search_compiles above "
            f"{config.plan.search_compiles}"
        )
    return [*confirmed, *by_formula[len(best) :]]


def _label(plan: Plan) -> str:
    return plan.run.describe().replace(", remat", "\nremat")
