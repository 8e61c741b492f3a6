"""plan.md: a plan as a report for people."""

from collections.abc import Iterable, Sequence
from typing import Any

from allam_jax.planning.generation_cost import generation_cost
from allam_jax.planning.roofline import collective_seconds
from allam_jax.planning.run_plan import ReferenceCost, RunPlan
from allam_jax.planning.search import gib
from allam_jax.report.markdown import section, table


def plan_markdown(
    plan: RunPlan, *, figure: str, candidates: Sequence[RunPlan] = (), live_reference: ReferenceCost | None = None
) -> str:
    """The whole report.

    `figure` is its picture's file name; `candidates` are a search's layouts, the fastest first; `live_reference` is the
    cost of that of a preference optimisation beside the step.
    """
    run = plan.run
    source = "from formulas alone" if plan.compiled is None else "from the compiled step"
    blocks = [
        f"{run.describe()}; batch {run.batch_size} x {run.seq_len} tokens, {run.options.compute_dtype} compute, "
        f"{run.param_dtype} parameters. Figures are {source}, and for one GPU unless stated otherwise.",
        _rows(("figure", "value"), summary(plan).items()),
        f"![memory and time]({figure})",
        section("Memory of one GPU", memory_table(plan)),
        section("Time of a step", time_table(plan)),
        section("Collectives of a step", collectives_table(plan)),
        section("Generation on one node", generation_table(plan)),
        section("Assumptions", "\n".join(f"- {line}" for line in assumptions(plan))),
    ]
    if live_reference:
        blocks.append(
            section(
                "Live reference",
                f"Beside the step: {gib(live_reference.bytes)} of memory for a second copy of the weights, and "
                f"{live_reference.seconds:.2f} s for a forward pass of each copy. Cached values cost neither.",
            )
        )
    if candidates:
        blocks.append(section("Layouts that fit", candidates_table(candidates)))
    return section(f"{run.model.num_parameters / 1e9:.1f}B on {plan.cluster.describe()}", *blocks, level=1) + "\n"


def summary(plan: RunPlan) -> dict[str, str]:
    """Name -> value of the most important figures."""
    return {
        "fits": f"{'yes' if plan.memory.fits else 'NO'}: {gib(plan.memory.total)} of {gib(plan.memory.usable)}",
        "predicted step time": f"{plan.time.total:.2f} s, {_band(plan, plan.time.total, '.2f')} s",
        "tokens per second and GPU": f"{plan.tokens_per_second_per_gpu:,.0f}, "
        f"{_band(plan, plan.tokens_per_second_per_gpu, ',.0f')}",
        "MFU (causal attention, no recomputation counted)": f"{plan.mfu:.1%}",
        "HFU (recomputation counted)": f"{plan.hardware_flops / (plan.time.total * plan.peak_flops):.1%}",
        "model FLOPs": f"{plan.model_flops / 1e12:,.0f} TFLOP, "
        f"{plan.model_flops / plan.time.total / 1e12:,.0f} TFLOP/s",
        "hardware FLOPs": f"{plan.hardware_flops / 1e12:,.0f} TFLOP",
        "memory traffic": f"{plan.memory_traffic / 1e9:,.0f} GB",
        "training": f"{plan.tokens / 1e9:,.0f}B tokens, {plan.tokens / plan.run.tokens_per_step:,.0f} steps",
        "days": f"{plan.days:.1f}, {_band(plan, plan.days, '.1f')}",
        "GPU hours": f"{plan.gpu_hours:,.0f}",
        "energy": f"{plan.megawatt_hours:,.0f} MWh"
        if plan.megawatt_hours >= 10
        else f"{1000 * plan.megawatt_hours:,.0f} kWh",
    }


def _band(plan: RunPlan, value: float, form: str) -> str:
    """The error band around a prediction that is proportional to the time of a step, or to its inverse."""
    factor = 1 + plan.cluster.efficiency.error
    return f"between {value / factor:{form}} and {value * factor:{form}}"


def memory_table(plan: RunPlan) -> str:
    """Bytes by class, and what each class holds."""
    m = plan.memory
    rows = (
        ("parameters", m.parameters, "exact"),
        ("optimizer", m.optimizer, "exact: two moments, guard, counters"),
        ("batch", m.batch, "exact"),
        ("gradients", m.gradients, "as held before the update"),
        ("activations", m.activations, "kept for the backward pass"),
        ("temporary", m.temporary, "gathered layers, copies, logits of a chunk, workspace"),
        ("headroom", m.headroom, f"of {gib(m.usable)} that a program may use"),
    )
    return _rows(("class", "GiB", ""), ((name, f"{size / 2**30:.2f}", note) for name, size, note in rows))


def time_table(plan: RunPlan) -> str:
    """Seconds by cause, with their share of the step."""
    t = plan.time
    rows = (
        ("matrix products", t.matmul),
        ("attention kernels", t.attention),
        ("memory-bound work, optimizer", t.memory),
        ("collectives over tensor, not hidden", t.tensor),
        ("collectives over fsdp and data, not hidden", t.exposed),
        ("step", t.total),
        ("hidden behind compute, not in the sum", t.hidden),
    )
    return _rows(("part", "s", "share"), ((name, f"{s:.3f}", f"{s / t.total:.0%}") for name, s in rows))


def collectives_table(plan: RunPlan) -> str:
    """A row for each kind of collective; kinds that send less than a thousandth of all bytes share one row."""
    total = sum(each.wire_bytes * each.count for each in plan.collectives)
    if not total:
        return "None: there is one GPU."
    headings = ("kind", "mesh axes", "dtype", "array, MB", "times", "sent, GB", "members", "on a node", "leaves it")
    rows: list[tuple[Any, ...]] = []
    small_count, small_bytes, small_seconds = 0, 0.0, 0.0
    for each in plan.collectives:
        sent = each.wire_bytes * each.count
        seconds = collective_seconds(each, cluster=plan.cluster) * each.count
        if sent < total / 1000:
            small_count += each.count
            small_bytes += sent
            small_seconds += seconds
            continue
        size, crosses = f"{each.payload_bytes / 1e6:,.1f}", "yes" if each.crosses_nodes else "no"
        row = (each.kind, ", ".join(each.axes), each.dtype, size, each.count, f"{sent / 1e9:,.2f}", each.group_size)
        rows.append((*row, each.ranks_per_node, crosses, "yes" if each.asynchronous else "no", f"{seconds:.3f}"))
    if small_count:
        figures = (small_count, f"{small_bytes / 1e9:,.2f}", "", "", "", "", f"{small_seconds:.3f}")
        rows.append(("small ones", "", "", "", *figures))
    return _rows((*headings, "async", "s"), rows)


def generation_table(plan: RunPlan) -> str:
    """What the cache costs when the trained model generates, and how many texts fit."""
    run, cluster = plan.run, plan.cluster
    cost = generation_cost(run.model, cluster=cluster, gpus=cluster.gpus_per_node, tokens=run.seq_len)
    step = f"{1e3 * cost.seconds_empty:.1f} ms with short texts, {1e3 * cost.seconds_full:.1f} ms with full ones"
    rows = (
        ("weights, 16 bits", gib(cost.weights)),
        ("a token in the cache", f"{cost.token / 1024:,.0f} KiB"),
        (f"slots of {run.seq_len:,} tokens that fit", f"{cost.slots:,}"),
        ("a step of decoding, at least", step),
    )
    return _rows((f"one of {cluster.gpus_per_node} GPUs", ""), rows)


def assumptions(plan: RunPlan) -> list[str]:
    """The assumptions behind the prediction, a sentence or two each."""
    e, gpu, cluster = plan.cluster.efficiency, plan.cluster.gpu, plan.cluster
    band = f"The printed band is a factor of {1 + e.error:.2f} each way"
    if e.fitted:
        band += (
            ": 95 % of the published runs that were fitted lie within it. docs/planning.md compares them one by one."
        )
    else:
        band += " and a guess, because no published run of this GPU was used."
    lines = [
        f"Matrix products reach {e.matmul:.0%} of {plan.peak_flops / 1e12:,.0f} TFLOP/s, attention kernels "
        f"{e.attention:.0%}, memory {e.memory:.0%} of {gpu.memory_bandwidth / 1e12:.2f} TB/s. The shares are the same "
        f"for every model and mesh on this GPU ({e.basis}). {band}",
        f"Links reach {e.links:.0%} of {gpu.nvlink_bandwidth / 1e9:.0f} GB/s inside a node and of "
        f"{gpu.network_bandwidth / 1e9:.0f} GB/s of network per GPU. Compute hides {e.overlap:.0%} of the time of "
        "asynchronous fsdp and data collectives, and nothing of those over tensor.",
        "Attention is causal over whole rows, as for one document per row. Packed rows are faster.",
        f"A node draws at most {gpu.watts * cluster.gpus_per_node:,.0f} W, and {cluster.power_share:.0%} of it on "
        f"average. The building draws {cluster.pue} times as much. The days include no failures and no evaluation.",
        f"A program may use {cluster.usable_share:.0%} of the memory "
        f"(XLA_PYTHON_CLIENT_MEM_FRACTION={cluster.usable_share:g}). CUDA and NCCL use the rest.",
    ]
    if plan.compiled is not None and plan.compiled.uncounted:
        kernels = ", ".join(plan.compiled.uncounted)
        lines.append(f"The operations of these kernels are unknown; only their memory traffic is counted: {kernels}.")
    return lines


def candidates_table(plans: Sequence[RunPlan]) -> str:
    """A row for each layout."""
    headings = ("remat", "accumulation", "rows", "GiB", "step, s", "tokens/s/GPU", "MFU", "figures")
    rows = [
        (
            *plan.run.mesh.values(),
            plan.run.options.remat,
            plan.run.accumulation,
            plan.run.rows_per_shard,
            f"{plan.memory.total / 2**30:.1f}",
            f"{plan.time.total:.2f}",
            f"{plan.tokens_per_second_per_gpu:,.0f}",
            f"{plan.mfu:.1%}",
            "formula" if plan.compiled is None else "compiled",
        )
        for plan in plans
    ]
    return _rows((*plans[0].run.mesh, *headings), rows)


def _rows(headings: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    return table([dict(zip(headings, row, strict=True)) for row in rows], headings)
