"""Figures of runs over their optimizer steps: loss, gradient norm, learning rate, bits per byte."""

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
    difference_axis,
    early_step_axes,
    language_name,
    legend,
    running_mean,
    save_figure,
    series,
    smoothing_width,
    subplots,
)

_PANELS = {
    "loss": "Training loss (nats/token)",
    "grad_norm": "Gradient norm",
    "learning_rate": "Learning rate",
}


def training_curves(runs: Mapping[str, Sequence[Mapping[str, Any]]], path: Path) -> None:
    """Draws loss, gradient norm and learning rate over the steps, in three panels above each other.

    `runs` has the rows of each run's metrics.jsonl (`step`, `loss`, `grad_norm`, `learning_rate`). Long runs show loss
    and gradient norm as faint lines with their running means.
    """
    import matplotlib

    width = smoothing_width(max(len(series(rows, "loss")[0]) for rows in runs.values()))
    with matplotlib.rc_context(STYLE):
        figure, axes = subplots(rows=3, columns=1, size=(6.3, 6.0), heights=(2, 1.2, 1))
        for ax, (key, label) in zip(axes[:, 0], _PANELS.items(), strict=True):
            for index, (name, rows) in enumerate(runs.items()):
                steps, values = series(rows, key)
                colour, style = COLOURS[index % len(COLOURS)], STYLES[index % len(STYLES)]
                if width > 1 and key != "learning_rate":
                    ax.plot(steps, values, color=colour, alpha=0.25, linewidth=0.8)
                    values = running_mean(values, width=width)
                ax.plot(steps, values, color=colour, linestyle=style, label=name)
            ax.set_ylabel(label)
        _logarithmic_if_wide(axes[1, 0], [series(rows, "grad_norm")[1] for rows in runs.values()])
        axes[2, 0].set_ylim(bottom=0)
        _scale_by_power_of_ten(axes[2, 0])
        smoothed = f" (faint: logged values; bold: running mean of {width})" if width > 1 else ""
        axes[2, 0].set_xlabel(f"Optimizer step{smoothed}")
        figure.align_ylabels(axes[:, 0])
        legend(figure, axes[0, 0], columns=3, title="Run")
        save_figure(figure, path)


def bits_per_byte_curves(
    runs: Mapping[str, Mapping[str, Sequence[tuple[int, float]]]],
    *,
    base: Mapping[str, float],
    path: Path,
) -> None:
    """Draws bits per byte over the steps, with a column of panels for each language.

    The step axis shows the first steps widely, because continued pre-training moves most there. With several runs a
    second row shows the difference of each run to the first one, on an axis that shows small lasting differences
    beside large early ones.

    Args:
        runs: for each run and language the (step, bits per byte) of its evaluations.
        base: bits per byte before the runs, for each language that gets a dashed line; may be empty.
        path: the PNG.
    """
    import matplotlib

    languages = list(dict.fromkeys(language for curves in runs.values() for language in curves))
    reference = next(iter(runs))
    compare = len(runs) > 1
    with matplotlib.rc_context(STYLE):
        size = (max(3.4 * len(languages), 4.2), 5.2 if compare else 3.2)
        figure, axes = subplots(rows=1 + compare, columns=len(languages), size=size, heights=(3, 2)[: 1 + compare])
        drawn = []
        for column, language in enumerate(languages):
            ax = axes[0, column]
            ax.set_title(language_name(language))
            if compare:
                difference_axis(axes[1, column], reference=reference, unit="bits/byte")
            if language in base:
                ax.axhline(base[language], color="#555555", linestyle="--", linewidth=1.1, label="base model")
            first = dict(runs[reference].get(language, ()))
            for index, (name, curves) in enumerate(runs.items()):
                points = sorted(curves.get(language, ()))
                look = {"color": COLOURS[index % len(COLOURS)], "marker": MARKERS[index % len(MARKERS)]}
                ax.plot(*_columns(points), label=name, **look)
                drawn.append([step for step, _ in points])
                if compare:
                    shared = [(step, value - first[step]) for step, value in points if step in first]
                    axes[1, column].plot(*_columns(shared), **look)
        label = early_step_axes(axes[-1], drawn)
        for ax in axes[-1]:
            ax.set_xlabel(label)
        axes[0, 0].set_ylabel("Bits per byte (held out)")
        figure.align_ylabels(axes[:, 0])
        legend(figure, axes[0, 0], columns=4, title="Run")
        save_figure(figure, path)


def _columns(points: Sequence[tuple[int, float]]) -> tuple[list[int], list[float]]:
    return [step for step, _ in points], [value for _, value in points]


def _logarithmic_if_wide(ax, values: Sequence[np.ndarray]) -> None:
    known = np.concatenate([v[np.isfinite(v) & (v > 0)] for v in values] or [np.empty(0)])
    if len(known) and known.max() > 20 * known.min():
        ax.set_yscale("log")


def _scale_by_power_of_ten(ax) -> None:
    """Moves the power of ten from the ticks into the axis label."""
    top = ax.get_ylim()[1]
    power = math.floor(math.log10(top)) if top > 0 else 0
    if power != 0:
        ax.yaxis.set_major_formatter(lambda value, _: f"{value / 10**power:.3g}")
        ax.set_ylabel(f"{ax.get_ylabel()} ($10^{{{power}}}$)")


def suite_curves(
    scores: Mapping[str, Sequence[tuple[int, float, float, float]]],
    *,
    chance: Mapping[str, float],
    loss: Sequence[Mapping[str, Any]],
    path: Path,
) -> None:
    """Draws the accuracy of suites over the steps of one run, with the training loss below them.

    Args:
        scores: (step, accuracy, low, high) of each suite, with the ends of its interval.
        chance: accuracy of a blind guess, a dashed line for each suite that has one.
        loss: rows of the run's metrics.jsonl; may be empty.
        path: the PNG.
    """
    import matplotlib

    steps, losses = series(loss, "loss")
    panels = 1 + bool(len(steps))
    with matplotlib.rc_context(STYLE):
        figure, axes = subplots(rows=panels, columns=1, size=(6.3, 2.2 + 1.8 * panels), heights=(2, 1)[:panels])
        for index, (name, points) in enumerate(scores.items()):
            colour, marker = COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)]
            at, accuracy, low, high = zip(*sorted(points), strict=True)
            axes[0, 0].plot(at, accuracy, color=colour, marker=marker, label=name)
            axes[0, 0].fill_between(at, low, high, color=colour, alpha=0.15, linewidth=0)
            if name in chance:
                axes[0, 0].axhline(chance[name], color=colour, linestyle=STYLES[1], linewidth=0.9)
        axes[0, 0].set_ylabel("Accuracy")
        if panels > 1:
            width = smoothing_width(len(steps))
            axes[1, 0].plot(steps, losses, color=COLOURS[0], alpha=0.25 if width > 1 else 1.0, linewidth=0.8)
            if width > 1:
                axes[1, 0].plot(steps, running_mean(losses, width=width), color=COLOURS[0])
            axes[1, 0].set_ylabel("Training loss")
        axes[-1, 0].set_xlabel("Optimizer step (bands: 95 % intervals; dashed: chance)")
        figure.align_ylabels(axes[:, 0])
        legend(figure, axes[0, 0], columns=4)
        save_figure(figure, path)
