"""Task `plan_rewrite`: GPU hours to rewrite or translate a corpus with a worker, on a described cluster.

No GPU, weights or documents are needed. The workdir holds plan.json and plan.md.
"""

import dataclasses
import sys
from pathlib import Path
from typing import Any

from allam_jax.config import require
from allam_jax.errors import UserError
from allam_jax.files import write_json, write_text
from allam_jax.model.llama import abstract_params, param_axes
from allam_jax.parallel.mesh import abstract_mesh
from allam_jax.parallel.sharding import parameter_shardings
from allam_jax.planning.gpu_cluster import cluster_of
from allam_jax.planning.rewrite_plan import Asked, RewritePlan
from allam_jax.planning.search import gib
from allam_jax.report.markdown import section, table
from allam_jax.rewriting.document_pieces import count_by_bytes
from allam_jax.rewriting.instructions import read_instruction
from allam_jax.settings import Settings
from allam_jax.tasks.plan import planned_model


def run(config: Settings, workdir: Path) -> dict[str, Any]:
    """Plans by `config.rewrite_plan`; returns the figures. UserError if the worker or its slots do not fit."""
    plan = planned(config)
    asked, cost, cluster = plan.asked, plan.cost, plan.cluster
    result = {
        "prompt_tokens": round(asked.texts * asked.prompt),
        "answer_tokens": round(asked.texts * asked.answer),
        "texts": round(asked.texts),
        "slots": plan.slots,
        "slots_that_fit": cost.slots,
        "prefill_seconds": plan.prefill_seconds,
        "step_seconds": plan.step_seconds,
        "answer_tokens_per_second_per_gpu": round(plan.answer_tokens_per_second, 1),
        "gpu_hours": round(plan.gpu_hours, 2),
        "hours": round(plan.hours, 2),
        "megawatt_hours": round(cluster.megawatt_hours(plan.gpu_hours), 3),
    }
    rows = {
        "documents": f"{asked.documents:,.0f} tokens, {asked.documents / asked.piece:,.0f} pieces",
        "asked": f"{asked.texts:,.0f} times, {asked.attempts:g} a piece",
        "prompt": f"{asked.prompt:,.0f} tokens, {asked.instruction:,.0f} of them the instruction",
        "answer": f"{asked.answer:,.0f} tokens",
        "tokens of prompts, of answers": f"{result['prompt_tokens']:,}, {result['answer_tokens']:,}",
        "copies of the worker": f"{cluster.size // plan.gpus:,}, each on {plan.gpus} GPU{'s' if plan.gpus > 1 else ''}",
        "weights on a GPU, 16 bits": gib(cost.weights),
        f"slots of {plan.capacity:,} tokens": f"{plan.slots:,} of {cost.slots:,} that fit"
        + (f", {plan.busy:,} with a text" if plan.busy < plan.slots else ""),
        "prefill of a prompt": f"{1e3 * plan.prefill_seconds:.1f} ms",
        "a step of decoding": f"{1e3 * plan.step_seconds:.1f} ms",
        "tokens of answers per second and GPU": f"{plan.answer_tokens_per_second:,.0f}",
        "GPU hours": f"{plan.gpu_hours:,.0f}",
        "hours on the cluster": f"{plan.hours:,.1f}",
        "energy": f"{cluster.megawatt_hours(plan.gpu_hours):,.1f} MWh",
    }
    e = cluster.efficiency
    assumed = (
        f"Products reach {e.matmul:.0%} of the peak and memory {e.memory:.0%} of its bandwidth, the shares of training "
        f"steps ({e.basis}); no run that generates has confirmed them. Checks of the answers, reading and failures "
        "take no time here."
    )
    title = f"{plan.model.num_parameters / 1e9:.1f}B worker on {cluster.describe()}"
    figures = table([{"figure": name, "value": value} for name, value in rows.items()])
    report = section(title, figures, assumed, level=1) + "\n"
    write_json(workdir / "plan.json", result | {"cluster": cluster.describe(), "asked": dataclasses.asdict(asked)})
    write_text(workdir / "plan.md", report)
    sys.stderr.write(report)
    return result


def planned(config: Settings) -> RewritePlan:
    """The plan that the settings describe; UserError where something does not fit."""
    options = config.rewrite_plan
    cluster, gpus = cluster_of(options), options.gpus_per_copy
    path = require(options.instruction, key="rewrite_plan.instruction", hint="configs/rewrite.py:plan gives one")
    prompts = read_instruction(path).prompts.values()
    instruction = max(count_by_bytes(list(prompts)))
    answer = options.piece_tokens * options.answer_share
    plan = RewritePlan(
        model=planned_model(config) or config.model,
        cluster=cluster,
        gpus=gpus,
        asked=Asked(
            documents=options.tokens,
            piece=options.piece_tokens,
            instruction=instruction,
            answer=answer,
            attempts=options.attempts,
        ),
        capacity=options.capacity,
        wanted_slots=options.slots,
        burst=options.burst,
    )
    if not plan.model.vocab_size:
        raise UserError("config.model.vocab_size = 0: a plan opens no tokenizer; give the number of ids")
    if cluster.gpus_per_node % gpus:
        raise UserError(
            f"config.rewrite_plan.gpus_per_copy = {gpus}: expected a divisor of gpus_per_node = {cluster.gpus_per_node}"
        )
    try:
        mesh = abstract_mesh({"data": 1, "fsdp": 1, "tensor": gpus})
        parameter_shardings(param_axes(plan.model), abstract_params=abstract_params(plan.model), mesh=mesh)
    except UserError as error:
        raise UserError(f"config.rewrite_plan.gpus_per_copy = {gpus}: does not cut the worker: {error}") from None
    if plan.asked.prompt + answer > options.capacity:
        raise UserError(
            f"config.rewrite_plan.capacity = {options.capacity:,}: an average prompt with its answer has "
            f"{plan.asked.prompt + answer:,.0f} tokens; raise it, or lower piece_tokens"
        )
    if options.capacity > plan.model.max_position:
        raise UserError(
            f"config.rewrite_plan.capacity = {options.capacity:,}: the worker's context is "
            f"{plan.model.max_position:,} tokens; lower it"
        )
    if not 0 < plan.slots <= plan.cost.slots:
        raise UserError(
            f"config.rewrite_plan: {max(plan.slots, 1):,} slots of {options.capacity:,} tokens do not fit beside "
            f"{gib(plan.cost.weights)} of weights: {plan.cost.slots:,} do; lower slots or capacity, or raise "
            "gpus_per_copy"
        )
    return plan
