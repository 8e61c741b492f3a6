"""plan.md: what a plan says, for people."""

from collections.abc import Sequence

from allam_jax.planning.roofline import collective_seconds
from allam_jax.planning.run_plan import Plan
from allam_jax.planning.search import gib


def markdown(plan: Plan, *, figure: str, candidates: Sequence[Plan] = ()) -> str:
    """The whole report. `figure`: file name of the picture; `candidates`: of a search, the fastest first."""
    c, run = plan.cluster, plan.run
    source = "from formulas alone" if plan.compiled is None else "of the compiled step"
    lines = [
        f"# {run.model.num_parameters / 1e9:.1f}B on {c.describe()}",
        "",
        f"{run.describe()}; batch {run.batch_size} x {run.seq_len} tokens, {run.options.compute_dtype} compute, "
        f"{run.param_dtype} parameters. Figures {source}, for one GPU unless said otherwise.",
        "",
        *summary_table(plan),
        "",
        f"![memory and time]({figure})",
        "",
        "## Memory of one GPU",
        "",
        *memory_table(plan),
        "",
        "## Time of a step",
        "",
        *time_table(plan),
        "",
        "## Collectives of a step",
        "",
        *collectives_table(plan),
        "",
        "## Assumptions",
        "",
        *assumptions(plan),
    ]
    if candidates:
        lines += ["", "## Layouts that fit, by formula", "", *candidates_table(candidates)]
    return "\n".join(lines) + "\n"


def summary_table(plan: Plan) -> list[str]:
    """The figures that people ask for first."""
    peak = plan.cluster.gpu.peak_flops[plan.run.options.compute_dtype]
    hardware = plan.hardware_flops / (plan.time.total * peak)
    rows = [
        ("fits", f"{'yes' if plan.memory.fits else 'NO'}: {gib(plan.memory.total)} of {gib(plan.memory.usable)}"),
        ("predicted step time", f"{plan.time.total:.2f} s"),
        ("tokens per second and GPU", f"{plan.tokens_per_second_per_gpu:,.0f}"),
        ("MFU (causal attention, no recomputation counted)", f"{plan.mfu:.1%}"),
        ("HFU (what is really computed)", f"{hardware:.1%}"),
        ("model FLOPs", f"{plan.model_flops / 1e12:,.0f} TFLOP, {plan.model_flops / plan.time.total / 1e12:,.0f} /s"),
        ("hardware FLOPs", f"{plan.hardware_flops / 1e12:,.0f} TFLOP"),
        ("memory traffic", f"{plan.memory_traffic / 1e9:,.0f} GB"),
        ("training", f"{plan.tokens / 1e9:,.0f}B tokens, {plan.tokens / plan.run.tokens_per_step:,.0f} steps"),
        ("days", f"{plan.days:.1f}"),
        ("GPU hours", f"{plan.gpu_hours:,.0f}"),
        ("energy", f"{plan.megawatt_hours:,.0f} MWh"),
    ]
    return ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)]


def memory_table(plan: Plan) -> list[str]:
    """Classes, in the order in which they come to be."""
    m = plan.memory
    rows = [
        ("parameters", m.parameters, "exact"),
        ("optimizer", m.optimizer, "exact: two moments, guard, counters"),
        ("batch", m.batch, "exact"),
        ("gradients", m.gradients, "as held before the update"),
        ("activations", m.activations, "kept for the backward pass"),
        ("temporary", m.temporary, "gathered layers, copies, logits of a chunk, workspace"),
        ("headroom", m.headroom, f"of {gib(m.usable)} that a program may use"),
    ]
    return ["| class | GiB | |", "|---|---|---|", *(f"| {n} | {size / 2**30:.2f} | {note} |" for n, size, note in rows)]


def time_table(plan: Plan) -> list[str]:
    """Seconds by cause."""
    t = plan.time
    rows = [
        ("matrix products", t.matmul),
        ("attention kernels", t.attention),
        ("memory-bound work, optimizer", t.memory),
        ("collectives over tensor, not hidden", t.tensor),
        ("collectives over fsdp and data, not hidden", t.exposed),
        ("step", t.total),
        ("hidden behind compute, not in the sum", t.hidden),
    ]
    return ["| part | s | share |", "|---|---|---|", *(f"| {n} | {s:.3f} | {s / t.total:.0%} |" for n, s in rows)]


def collectives_table(plan: Plan) -> list[str]:
    """Every kind that sends at least a thousandth of all bytes; the rest in one row."""
    total = sum(each.wire_bytes * each.count for each in plan.collectives)
    if not total:
        return ["None: one GPU."]
    lines = [
        "| kind | mesh axes | dtype | array, MB | times | sent, GB | members | on a node | leaves it | async | s |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    small_count, small_bytes, small_seconds = 0, 0.0, 0.0
    for each in plan.collectives:
        sent = each.wire_bytes * each.count
        seconds = collective_seconds(each, cluster=plan.cluster) * each.count
        if sent < total / 1000:
            small_count, small_bytes, small_seconds = (
                small_count + each.count,
                small_bytes + sent,
                small_seconds + seconds,
            )
            continue
        lines.append(
            f"| {each.kind} | {', '.join(each.axes)} | {each.dtype} | {each.payload_bytes / 1e6:,.1f} | {each.count} | "
            f"{sent / 1e9:,.2f} | {each.group_size} | {each.ranks_per_node} | "
            f"{'yes' if each.crosses_nodes else 'no'} | {'yes' if each.asynchronous else 'no'} | {seconds:.3f} |"
        )
    if small_count:
        lines.append(f"| small ones | | | | {small_count} | {small_bytes / 1e9:,.2f} | | | | | {small_seconds:.3f} |")
    return lines


def assumptions(plan: Plan) -> list[str]:
    """What the prediction takes for granted."""
    e, gpu = plan.cluster.efficiency, plan.cluster.gpu
    peak = gpu.peak_flops[plan.run.options.compute_dtype] / 1e12
    lines = [
        f"- Matrix products at {e.matmul:.0%} of {peak:,.0f} TFLOP/s, attention kernels at {e.attention:.0%}, memory "
        f"at {e.memory:.0%} of {gpu.memory_bandwidth / 1e12:.2f} TB/s: the same shares for every model, mesh and GPU, "
        "checked against published runs (docs/planning.md).",
        f"- Links at {e.links:.0%} of {gpu.nvlink_bandwidth / 1e9:.0f} GB/s inside a node and "
        f"{gpu.network_bandwidth / 1e9:.0f} GB/s of network for each GPU; {e.overlap:.0%} of the time of asynchronous "
        "fsdp and data collectives is hidden behind compute, nothing of those over tensor.",
        "- Attention is counted causal, as for one document in each row; packed rows are quicker.",
        f"- A node draws {gpu.watts * plan.cluster.gpus_per_node:,.0f} W at most, {plan.energy.power_share:.0%} of it "
        f"on average; the building takes {plan.energy.pue} times that. The days know no failures and no evaluation.",
        f"- A program may use {plan.cluster.usable_share:.0%} of the memory "
        f"(XLA_PYTHON_CLIENT_MEM_FRACTION={plan.cluster.usable_share:g}); the rest is for CUDA and NCCL.",
    ]
    if plan.compiled is not None and plan.compiled.uncounted:
        lines.append(
            f"- Operations of these kernels are not known, only their memory traffic is counted: "
            f"{', '.join(plan.compiled.uncounted)}."
        )
    return lines


def candidates_table(plans: Sequence[Plan]) -> list[str]:
    """One row a layout."""
    lines = [
        "| data | fsdp | tensor | remat | accumulation | rows | GiB | step, s | tokens/s/GPU | MFU | figures |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for plan in plans:
        mesh, run = plan.run.mesh, plan.run
        lines.append(
            f"| {mesh['data']} | {mesh['fsdp']} | {mesh['tensor']} | {run.options.remat} | {run.accumulation} | "
            f"{run.rows_per_shard} | {plan.memory.total / 2**30:.1f} | {plan.time.total:.2f} | "
            f"{plan.tokens_per_second_per_gpu:,.0f} | {plan.mfu:.1%} | "
            f"{'formula' if plan.compiled is None else 'compiled'} |"
        )
    return lines
