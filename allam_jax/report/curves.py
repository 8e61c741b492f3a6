"""Figures over the steps of runs: loss, gradient norm, learning rate, bits per byte.

Matplotlib is imported only when one is drawn.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from allam_jax.report.style import (
    COLOURS,
    MARKERS,
    STYLE,
    STYLES,
    grid,
    language_name,
    legend,
    running_mean,
    save,
    series,
    signed_logarithmic,
    step_axis,
)

_NOISY_POINTS = 60  # from so many points on, a curve is drawn as a faint line and its running mean


def training_curves(runs: Mapping[str, Sequence[Mapping[str, Any]]], path: Path) -> None:
    """Draws loss, gradient norm and learning rate over the steps, in three panels above each other.

    Args:
        runs: rows of metrics.jsonl (`step`, `loss`, `grad_norm`, `learning_rate`) for each named run.
        path: the PNG to write.
    """
    import matplotlib

    with matplotlib.rc_context(STYLE):
        figure, axes = grid(rows=3, columns=1, size=(6.3, 6.0), heights=(2, 1.2, 1))
        panels = (
            ("loss", "Training loss (nats/token)"),
            ("grad_norm", "Gradient norm"),
            ("learning_rate", "Learning rate"),
        )
        smoothed = False
        for ax, (key, label) in zip(axes[:, 0], panels, strict=True):
            for index, (name, rows) in enumerate(runs.items()):
                steps, values = series(rows, key)
                colour, style = COLOURS[index % len(COLOURS)], STYLES[index % len(STYLES)]
                if len(values) >= _NOISY_POINTS and key != "learning_rate":
                    smoothed = True
                    ax.plot(steps, values, color=colour, alpha=0.25, linewidth=0.8)
                    values = running_mean(values, width=2 * (len(values) // 80) + 1)
                ax.plot(steps, values, color=colour, linestyle=style, label=name)
            ax.set_ylabel(label)
        _logarithmic_if_wide(axes[1, 0], [series(rows, "grad_norm")[1] for rows in runs.values()])
        axes[2, 0].set_ylim(bottom=0)
        _scale_by_power_of_ten(axes[2, 0])
        axes[2, 0].set_xlabel("Optimizer step" + (" (faint: logged values; bold: running mean)" if smoothed else ""))
        figure.align_ylabels(axes[:, 0])
        legend(figure, axes[0, 0], columns=3)
        save(figure, path)


def bits_per_byte_curves(
    runs: Mapping[str, Mapping[str, Sequence[tuple[int, float]]]],
    *,
    base: Mapping[str, float],
    path: Path,
) -> None:
    """Draws bits per byte over the steps, a column of panels for each language.

    The step axis is logarithmic beyond the first evaluation, with room for step 0, because continued pre-training
    moves most in its first steps. With several runs a second row shows by how much each differs from the first, linear
    within ±0.01 and logarithmic beyond, so that a small lasting difference is seen beside a large early one.

    Args:
        runs: for each run and language the (step, bits per byte) of its evaluations.
        base: bits per byte before the runs, for each language that has a dashed line; may be empty.
        path: the PNG to write.
    """
    import matplotlib

    languages = list(dict.fromkeys(language for curves in runs.values() for language in curves))
    compare = len(runs) > 1
    with matplotlib.rc_context(STYLE):
        size = (max(3.4 * len(languages), 4.2), 4.6 if compare else 3.2)
        figure, axes = grid(rows=1 + compare, columns=len(languages), size=size, heights=(2, 1)[: 1 + compare])
        reference = next(iter(runs))
        for column, language in enumerate(languages):
            ax = axes[0, column]
            ax.set_title(language_name(language))
            if compare:
                signed_logarithmic(axes[1, column])
            if language in base:
                ax.axhline(base[language], color="#555555", linestyle="--", linewidth=1.1, label="base model")
            for index, (name, curves) in enumerate(runs.items()):
                steps, values = _curve(curves.get(language, ()))
                look = {
                    "color": COLOURS[index % len(COLOURS)],
                    "marker": MARKERS[index % len(MARKERS)],
                }
                ax.plot(steps, values, label=name, **look)
                if compare:
                    at_step = dict(zip(*_curve(runs[reference].get(language, ())), strict=True))
                    shared = [(s, value - at_step[s]) for s, value in zip(steps, values, strict=True) if s in at_step]
                    axes[1, column].plot(*_curve(shared), **look)
            step_axis(axes[-1, column], [curves.get(language, ()) for curves in runs.values()])
            axes[-1, column].set_xlabel("Optimizer step")
        axes[0, 0].set_ylabel("Bits per byte (held out)")
        if compare:
            axes[1, 0].set_ylabel(f"Difference to\n{reference}")
        figure.align_ylabels(axes[:, 0])
        legend(figure, axes[0, 0], columns=4)
        save(figure, path)


def _curve(points: Sequence[tuple[int, float]]) -> tuple[list[int], list[float]]:
    ordered = sorted(points)
    return [step for step, _ in ordered], [value for _, value in ordered]


def _logarithmic_if_wide(ax, values: Sequence[np.ndarray]) -> None:
    known = np.concatenate([v[np.isfinite(v) & (v > 0)] for v in values] or [np.empty(0)])
    if len(known) and known.max() > 20 * known.min():
        ax.set_yscale("log")


def _scale_by_power_of_ten(ax) -> None:
    """Puts the power of ten into the axis label, where a reader looks for units."""
    top = ax.get_ylim()[1]
    power = math.floor(math.log10(top)) if top > 0 else 0
    if power != 0:
        ax.yaxis.set_major_formatter(lambda value, _: f"{value / 10**power:.3g}")
        ax.set_ylabel(f"{ax.get_ylabel()} ($10^{{{power}}}$)")
