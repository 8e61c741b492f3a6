"""plan.png: memory of one GPU and time of a step, as bars. Matplotlib is imported only when it is drawn."""

from collections.abc import Sequence
from pathlib import Path

from allam_jax.files import atomic_path
from allam_jax.planning.run_plan import Plan
from allam_jax.report.style import COLOURS

_MEMORY = ("parameters", "optimizer", "gradients", "activations", "temporary")
_TIME = (
    ("matmul", "matrix products"),
    ("attention", "attention"),
    ("memory", "memory-bound"),
    ("tensor", "collectives: tensor"),
    ("exposed", "collectives: fsdp, data"),
)
_LABEL_FROM = 0.06  # share of the axis that a part needs to carry its number inside


def draw(plans: Sequence[tuple[str, Plan]], path: Path) -> None:
    """Draws one bar for each named plan, in two panels.

    Args:
        plans: label and plan; their clusters may differ.
        path: the PNG to write.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    height = 1.9 + 0.42 * len(plans)
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, height), sharey=True, layout="constrained")
    labels = [label for label, _ in plans]
    memory = [[getattr(plan.memory, name) / 2**30 for name in _MEMORY] for _, plan in plans]
    usable = max(plan.memory.usable for _, plan in plans) / 2**30
    _stack(left, labels, memory, names=_MEMORY, unit="{:.1f}", limit=1.02 * max(usable, *map(sum, memory)))
    left.axvline(usable, color="black", linewidth=1, linestyle=(0, (4, 2)))
    left.annotate(
        f"usable {usable:.0f}", (usable, 1), xycoords=("data", "axes fraction"), xytext=(0, 2),
        textcoords="offset points", va="bottom", ha="center", fontsize=8,
    )  # fmt: skip
    left.set(title="Memory of one GPU", xlabel="GiB")
    times = [[getattr(plan.time, name) for name, _ in _TIME] for _, plan in plans]
    _stack(right, labels, times, names=[name for _, name in _TIME], unit="{:.2f}", limit=1.16 * max(map(sum, times)))
    for row, (_, plan) in enumerate(plans):
        right.annotate(
            f"{plan.time.total:.2f} s, MFU {plan.mfu:.0%}", (plan.time.total, row), xytext=(4, 0), va="center",
            textcoords="offset points", fontsize=8,
        )  # fmt: skip
    right.set(title="Time of a step", xlabel="seconds")
    left.invert_yaxis()
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150)
    pyplot.close(figure)


def _stack(axes, labels: Sequence[str], rows: Sequence[Sequence[float]], *, names, unit: str, limit: float) -> None:
    for index, name in enumerate(names):
        values = [row[index] for row in rows]
        starts = [sum(row[:index]) for row in rows]
        axes.barh(range(len(rows)), values, left=starts, color=COLOURS[index], label=name, height=0.62)
        for position, (start, value) in enumerate(zip(starts, values, strict=True)):
            if value > _LABEL_FROM * limit:
                axes.text(
                    start + value / 2, position, unit.format(value), ha="center", va="center", color="white", fontsize=8
                )
    axes.set_xlim(0, limit)
    axes.set_yticks(range(len(labels)), labels, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.32 if len(rows) < 3 else -0.2), ncols=3, fontsize=8,
                frameon=False)  # fmt: skip
