"""plan.png: the memory of one GPU and the time of a step, as bars."""

from collections.abc import Sequence
from pathlib import Path

from allam_jax.planning.run_plan import RunPlan
from allam_jax.report.style import COLOURS, STYLE, save_figure, subplots

_MEMORY = {name: name for name in ("parameters", "optimizer", "gradients", "activations", "temporary")}
_TIME = {
    "matmul": "matrix products",
    "attention": "attention",
    "memory": "memory-bound",
    "tensor": "collectives: tensor",
    "exposed": "collectives: fsdp, data",
}
_TIME_COLOURS = ("#332288", "#882255", "#999933", "#88CCEE", "#BBBBBB")  # none of COLOURS: a colour has one meaning
_PALE = ("#E69F00", "#88CCEE", "#BBBBBB")  # need black numbers inside
_LABEL_FROM = 0.06  # share of the axis that a part needs to carry its number inside


def draw_plans(plans: Sequence[RunPlan], path: Path) -> None:
    """Draws a bar for each plan in two panels, the fastest first. Each label says whether the step was compiled.

    There must be at least one plan. Their clusters may differ.
    """
    import matplotlib

    plans = sorted(plans, key=lambda plan: plan.time.total)
    labels = [_label(plan) for plan in plans]
    with matplotlib.rc_context(STYLE | {"axes.grid": False}):
        figure, axes = subplots(rows=1, columns=2, size=(11, 1.9 + 0.5 * len(plans)), heights=(1,))
        left, right = axes[0]
        memory = [[getattr(plan.memory, name) / 2**30 for name in _MEMORY] for plan in plans]
        usable = max(plan.memory.usable for plan in plans) / 2**30
        limit = 1.02 * max(usable, *map(sum, memory))
        _stack(left, labels, memory, names=_MEMORY.values(), colours=COLOURS, unit="{:.1f}", limit=limit)
        left.axvline(usable, color="black", linewidth=1, linestyle=(0, (4, 2)))
        left.annotate(
            f"usable {usable:.0f}", (usable, 1), xycoords=("data", "axes fraction"), xytext=(0, 2),
            textcoords="offset points", va="bottom", ha="center", fontsize=8,
        )  # fmt: skip
        left.set(xlabel="memory of one GPU (GiB)")
        times = [[getattr(plan.time, name) for name in _TIME] for plan in plans]
        limit = 1.2 * max(map(sum, times))
        _stack(right, [""] * len(plans), times, names=_TIME.values(), colours=_TIME_COLOURS, unit="{:.2f}", limit=limit)
        for row, plan in enumerate(plans):
            right.annotate(
                f"{plan.time.total:.2f} s, MFU {plan.mfu:.0%}", (plan.time.total, row), xytext=(4, 0), va="center",
                textcoords="offset points", fontsize=8,
            )  # fmt: skip
        right.set(xlabel="predicted time of a step (seconds)")
        save_figure(figure, path)


def _label(plan: RunPlan) -> str:
    source = "formula" if plan.compiled is None else "compiled"
    layout = plan.run.describe().replace(", remat", "\nremat")
    return f"{layout}\n{source}"


def _stack(
    axes, labels: Sequence[str], rows: Sequence[Sequence[float]], *, names, colours, unit: str, limit: float
) -> None:
    for index, name in enumerate(names):
        values = [row[index] for row in rows]
        starts = [sum(row[:index]) for row in rows]
        axes.barh(range(len(rows)), values, left=starts, color=colours[index], label=name, height=0.62)
        ink = "black" if colours[index] in _PALE else "white"
        for position, (start, value) in enumerate(zip(starts, values, strict=True)):
            if value > _LABEL_FROM * limit:
                text = unit.format(value)
                axes.text(start + value / 2, position, text, ha="center", va="center", color=ink, fontsize=8)
    axes.set_xlim(0, limit)
    axes.set_yticks(range(len(labels)), labels, fontsize=8)
    axes.invert_yaxis()
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.08), ncols=3, fontsize=8, frameon=False)
