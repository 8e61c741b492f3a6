"""The figure of a model that learns a second language: what each way of adapting it gains, and what it costs."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from allam_jax.report.style import COLOURS, MARKERS, STYLE, label, legend, save_figure

Curve = Sequence[tuple[float, float]]  # (bytes of the new language seen, bits per byte)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bar:
    """A share with its 95 % interval."""

    value: float
    low: float
    high: float


def adaptation_figure(
    target: Mapping[str, Curve],
    kept: Mapping[str, Curve],
    *,
    names: tuple[str, str],
    base: Mapping[str, float],
    shots: Mapping[str, tuple[Bar, Bar]],
    speeds: Mapping[str, float],
    path: Path,
) -> None:
    """Draws four panels: bits per byte in both languages, learning from examples, and words per second.

    Args:
        target: for each arm the bits per byte of the new language.
        kept: the same of the base's language.
        names: of the two languages.
        base: bits per byte of the base by name of language; dashed lines.
        shots: for each model the accuracy without and with worked examples; may be empty.
        speeds: words of the new language that each model writes in a second; may be empty.
        path: the PNG.
    """
    import matplotlib
    from matplotlib.figure import Figure

    arms = list(dict.fromkeys((*target, *kept)))
    models = list(dict.fromkeys((*shots, *speeds)))
    look = {name: (COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]) for i, name in enumerate(arms)}
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.0, 6.4 if models else 3.4), layout="constrained")
        axes = figure.subplots(2 if models else 1, 2, squeeze=False)
        for ax, curves, name in zip(axes[0], (target, kept), names, strict=True):
            if name in base:
                ax.axhline(base[name], color="#555555", linestyle="--", linewidth=1.1, label="base model")
            for arm in arms:
                points = [(seen / 1e6, bits) for seen, bits in curves.get(arm, ())]
                colour, marker = look[arm]
                ax.plot(
                    *(zip(*points, strict=True) if points else ((), ())), color=colour, marker=marker, label=label(arm)
                )
            ax.set_title(name)
            ax.set_xlabel(f"{names[0]} text seen (MB)")
        axes[0, 0].set_ylabel("Bits per byte (held out)")
        if models:
            _shots(axes[1, 0], shots, models, name=names[1])
            _speeds(axes[1, 1], speeds, models, name=names[0])
        legend(figure, axes[0, 0], columns=4)
        save_figure(figure, path)


def _shots(ax, shots: Mapping[str, tuple[Bar, Bar]], models: Sequence[str], *, name: str) -> None:
    for row, model in enumerate(models):
        for bar, offset, marker, colour in zip(shots.get(model, ()), (-0.13, 0.13), "os", COLOURS, strict=False):
            error = [[bar.value - bar.low], [bar.high - bar.value]]
            ax.errorbar(bar.value, row + offset, xerr=error, fmt=marker, color=colour, linewidth=1)
    ax.plot([], [], "o", color=COLOURS[0], label="no examples")
    ax.plot([], [], "s", color=COLOURS[1], label="with examples")
    ax.legend(frameon=False, loc="best")
    ax.set_title(f"{name} capitals: accuracy")
    _rows(ax, models)


def _speeds(ax, speeds: Mapping[str, float], models: Sequence[str], *, name: str) -> None:
    ax.barh(range(len(models)), [speeds.get(model, 0.0) for model in models], height=0.6, color=COLOURS[2])
    ax.set_title(f"{name} words written in a second")
    _rows(ax, models)


def _rows(ax, models: Sequence[str]) -> None:
    ax.set_yticks(range(len(models)), [label(model) for model in models])
    ax.set_ylim(len(models) - 0.5, -0.5)
    ax.grid(axis="y", visible=False)
