"""Figures of a run, drawn from the rows of metrics.jsonl. Matplotlib is imported only when one is drawn."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from allam_jax.files import atomic_path

# Okabe and Ito's palette: told apart with any colour vision. Line styles differ as well, for grey prints.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
STYLES = ("-", (0, (5, 1.5)), (0, (1, 1)), (0, (4, 1.5, 1, 1.5)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LANGUAGES = {"en": "English", "ar": "Arabic", "code": "Code"}

STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.labelsize": 9,
    "legend.fontsize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E2E2E2",
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.5,
    "lines.markersize": 3.5,
    "figure.dpi": 100,
    "savefig.dpi": 200,
}
_NOISY_POINTS = 60  # from so many points on, a curve is drawn as a faint line and its running mean


def language_name(key: str) -> str:
    """`en` -> `English`; a key without a known name stays as it is."""
    return LANGUAGES.get(key, key)


def series(rows: Sequence[Mapping[str, Any]], key: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values of one metric, from those rows that have it. Two arrays of equal length."""
    pairs = [(row["step"], row[key]) for row in rows if row.get(key) is not None]
    steps, values = zip(*pairs, strict=True) if pairs else ((), ())
    return np.asarray(steps, np.int64), np.asarray(values, np.float64)


def running_mean(values: np.ndarray, *, width: int) -> np.ndarray:
    """Centred mean over `width` (odd) values; at the ends over those that exist. NaNs are left out."""
    known = np.isfinite(values)
    window = np.ones(width)
    half = width // 2
    sums = np.convolve(np.where(known, values, 0.0), window)[half : half + len(values)]
    counts = np.convolve(known.astype(float), window)[half : half + len(values)]
    return np.divide(sums, counts, out=np.full(len(values), np.nan), where=counts > 0)


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


def fertility_bars(table: Mapping[str, Mapping[str, Mapping[str, float]]], path: Path) -> None:
    """Draws fertility as in the paper's Figure 1: a group of bars for each kind of text, a bar for each tokenizer.

    Args:
        table: tokenizer -> kind of text -> counts with `tokens_per_word`, from `tokenizer.fertility.fertility_table`.
        path: the PNG to write.
    """
    import matplotlib

    names = list(table)
    domains = list(table[names[0]])
    width = 0.8 / len(names)
    with matplotlib.rc_context(STYLE):
        size = (max(1.2 + 0.5 * len(domains) * (len(names) + 1), 4.2), 3.6)
        figure, axes = grid(rows=1, columns=1, size=size, heights=(1,))
        ax = axes[0, 0]
        ax.grid(axis="x", visible=False)
        for n, name in enumerate(names):
            places = [d + (n - (len(names) - 1) / 2) * width for d in range(len(domains))]
            heights = [table[name][domain]["tokens_per_word"] for domain in domains]
            bars = ax.bar(places, heights, width * 0.94, label=name, color=COLOURS[n % len(COLOURS)])
            ax.bar_label(bars, fmt="%.2f", padding=2, fontsize=8)
        ax.set_xticks(range(len(domains)), [language_name(domain) for domain in domains])
        ax.set_ylabel("Fertility (tokens per word)")
        ax.margins(y=0.12)
        legend(figure, ax, columns=4)
        save(figure, path)


def grid(*, rows: int, columns: int, size: tuple[float, float], heights: Sequence[float]):
    """A new figure of `size` inches and its axes [rows, columns]; a column shares its x axis."""
    # Figure, not pyplot: no global state, no display, and safe outside the main thread. It draws with Agg.
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(rows, columns, sharex="col", squeeze=False, gridspec_kw={"height_ratios": heights})
    return figure, axes


def legend(figure, ax, *, columns: int) -> None:
    """The legend of `ax` above all panels, so that it covers no curve; none for a single label."""
    handles, labels = ax.get_legend_handles_labels()
    if len(labels) < 2:
        return
    figure.legend(handles, labels, loc="outside upper center", ncols=min(columns, len(labels)), frameon=False)


def save(figure, path: Path) -> None:
    """Writes a PNG, atomically."""
    with atomic_path(Path(path)) as temporary:
        # No software version inside: the same data gives the same bytes.
        figure.savefig(temporary, format="png", metadata={"Software": None})


def _curve(points: Sequence[tuple[int, float]]) -> tuple[list[int], list[float]]:
    ordered = sorted(points)
    return [step for step, _ in ordered], [value for _, value in ordered]


def step_axis(ax, curves: Sequence[Sequence[tuple[int, float]]]) -> None:
    """A logarithmic step axis with a place for step 0, ticks at 0 and at 1, 2, 5 times powers of ten."""
    from matplotlib.ticker import FixedLocator, NullLocator

    steps = sorted({step for curve in curves for step, _ in curve if step > 0})
    if len(steps) < 2:
        return
    first, last = steps[0], steps[-1]
    ax.set_xscale("symlog", linthresh=first, linscale=0.5)
    rounded = [m * 10**power for power in range(len(str(last))) for m in (1, 2, 5)]
    ticks = [0, first, *(tick for tick in rounded if first * 1.5 < tick <= last)]
    ax.xaxis.set_major_locator(FixedLocator(ticks))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(lambda step, _: f"{step:,.0f}")
    ax.set_xlim(-0.15 * first, last * 1.1)


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


def signed_logarithmic(ax) -> None:
    """A y axis of differences: linear within ±0.01, logarithmic beyond, with signs."""
    from matplotlib.ticker import NullLocator

    ax.set_yscale("symlog", linthresh=0.01, linscale=1)
    ax.margins(y=0.12)
    ax.yaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_major_formatter(lambda value, _: f"{value:+.2g}" if value else "0")
