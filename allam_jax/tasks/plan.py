"""Task `plan`: predicts the needs of a training run on a described cluster, without GPU, tokenizer or data.

The workdir holds plan.json, plan.md and plan.png.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from absl import logging

from allam_jax.alignment.preference_loss import Preference
from allam_jax.alignment.settings import DpoSettings
from allam_jax.errors import UserError
from allam_jax.files import write_json, write_text
from allam_jax.model.llama_config import LlamaConfig
from allam_jax.planning.compiled_step import compile_step
from allam_jax.planning.gpu_cluster import Cluster, cluster_of
from allam_jax.planning.plan_figure import draw_plans
from allam_jax.planning.plan_report import plan_markdown
from allam_jax.planning.run_plan import RunPlan, live_reference_cost
from allam_jax.planning.search import does_not_fit, gib, ranked
from allam_jax.settings import Settings
from allam_jax.training.load import open_stored
from allam_jax.training.run_description import RunDescription, described_run, next_token

SHOWN = 12  # layouts of a search in the report
_DRAWN = 6  # and in the figure
_TOKENS_OF_A_PAIR = 256  # rows hold no more pairs than this allows


def run(config: Settings, workdir: Path) -> dict[str, Any]:
    """Plans the run of a train config and returns the main figures. Raises UserError if the run does not fit."""
    # ---- the run and the cluster ----
    cluster = cluster_of(config.plan)
    objective = _preference(config.plan.preference) if config.plan.preference else next_token
    wanted = described_run(config, device_count=cluster.size, model=planned_model(config), objective=objective)
    if not config.plan.search:  # a search finds a mesh and an accumulation that suit the batch
        wanted.check_batch()
    tokens = config.plan.tokens or config.train.steps * wanted.tokens_per_step

    def planned(layout: RunDescription) -> RunPlan:
        step = compile_step(layout, cluster=cluster) if config.plan.compile else None
        if step:
            logging.info("compiled %s in %.0f s", layout.describe(), step.seconds)
        return RunPlan(run=layout, cluster=cluster, tokens=tokens, compiled=step)

    # ---- plan, or search ----
    candidates: list[RunPlan] = []
    if config.plan.search:
        candidates = _searched(wanted, cluster=cluster, tokens=tokens, planned=planned, config=config)
        plan = candidates[0]
    else:
        plan = planned(wanted)

    # ---- report ----
    live = live_reference_cost(plan) if config.plan.preference == "live" else None
    draw_plans((candidates or [plan])[:_DRAWN], workdir / "plan.png")
    report = plan_markdown(plan, figure="plan.png", candidates=candidates[:SHOWN], live_reference=live)
    write_text(workdir / "plan.md", report)
    write_json(workdir / "plan.json", plan.to_dict() | {"candidates": [each.to_dict() for each in candidates[:SHOWN]]})
    sys.stderr.write(report)
    if not plan.memory.fits:
        raise does_not_fit(plan, plans=ranked(wanted, cluster=cluster))
    if live and live.bytes > plan.memory.headroom:
        raise UserError(
            f"config.plan.preference = live: the second copy of the weights takes {gib(live.bytes)} of each GPU, of "
            f"which {gib(plan.memory.headroom)} are left beside the step; set it to cached, or take more GPUs"
        )
    cost = {"gib": round(live.bytes / 2**30, 2), "seconds": round(live.seconds, 3)} if live else {}
    return {
        "step_seconds": round(plan.time.total, 3),
        "step_seconds_band": [round(seconds, 3) for seconds in plan.band],
        "tokens_per_second_per_gpu": round(plan.tokens_per_second_per_gpu),
        "mfu": round(plan.mfu, 4),
        "memory_gib": round(plan.memory.total / 2**30, 2),
        "usable_gib": round(plan.memory.usable / 2**30, 2),
        "days": round(plan.days, 2),
        "gpu_hours": round(plan.gpu_hours),
        "megawatt_hours": round(plan.megawatt_hours, 1),
        "layout": plan.run.describe(),
        "compiled": plan.compiled is not None,
        **({"live_reference": cost} if cost else {}),
    }


def _preference(reference: str) -> Callable[[RunDescription], Preference]:
    """The objective of task `dpo`, with so many pairs a row as there are at the usual lengths."""
    settings = DpoSettings(reference=reference)
    return lambda run: Preference(
        model=run.model,
        options=run.options,
        settings=settings,
        most_pairs=max(1, run.seq_len // _TOKENS_OF_A_PAIR),
        num_chunks=run.loss_chunks,
    )


def planned_model(config: Settings) -> LlamaConfig | None:
    """The shapes of the weights to start from, which decide in training too; None: those of `config.model`."""
    weights = config.init.weights
    if weights and not Path(weights).exists():
        logging.warning("init.weights = %s: not here, so the plan takes the shapes of config.model", weights)
        return None
    return open_stored(Path(weights)).config if weights else None


def _searched(
    wanted: RunDescription,
    *,
    cluster: Cluster,
    tokens: float,
    planned: Callable[[RunDescription], RunPlan],
    config: Settings,
) -> list[RunPlan]:
    """The plans of layouts that fit: first the compiled ones, then those by formula, each group the fastest first."""
    by_formula = ranked(wanted, cluster=cluster, tokens=tokens)
    logging.info("%d layouts fit by formula", len(by_formula))
    best = [plan.run for plan in by_formula[: config.plan.search_compiles]]
    # The formula can ask for more memory than the compiled step needs: the config's own layout is not left to it.
    if config.plan.compile and wanted.suits_batch and wanted not in best:
        best.append(wanted)
    if not best:
        raise does_not_fit(RunPlan(run=wanted, cluster=cluster), plans=[])
    confirmed = sorted((plan for plan in map(planned, best) if plan.memory.fits), key=lambda plan: plan.time.total)
    if not confirmed:
        raise UserError(
            f"none of the {len(best)} best layouts fits when compiled; raise config.plan.search_compiles above "
            f"{config.plan.search_compiles}"
        )
    return [*confirmed, *(plan for plan in by_formula if plan.run not in best)]
