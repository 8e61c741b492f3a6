"""The look of all figures, and the parts that several figures share. Matplotlib is imported only to draw."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from allam_jax.files import atomic_path

# The palette of Okabe and Ito can be told apart with any colour vision. Line styles differ as well, for grey prints.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
STYLES = ("-", (0, (5, 1.5)), (0, (1, 1)), (0, (4, 1.5, 1, 1.5)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_LANGUAGES = """
    ar Arabic, bn Bengali, code Code, de German, el Greek, en English, es Spanish, fa Persian, fr French, he Hebrew,
    hi Hindi, id Indonesian, it Italian, ja Japanese, ko Korean, ku Kurdish, mr Marathi, ms Malay, nl Dutch, pl Polish,
    ps Pashto, pt Portuguese, ru Russian, sw Swahili, ta Tamil, th Thai, tr Turkish, uk Ukrainian, ur Urdu,
    vi Vietnamese, zh Chinese
"""
LANGUAGES = dict(entry.split() for entry in _LANGUAGES.split(","))
STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.labelsize": 9,
    "legend.fontsize": 9,
    "legend.title_fontsize": 9,
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
_LONGEST_LABEL = 60
_LINEAR_WITHIN = 0.01  # of 0, on an axis of differences
_FEW_POWERS = 500  # counts below span less than three powers of ten


def language_name(key: str) -> str:
    """`en` -> `English`; a key without a known name is returned unchanged."""
    return LANGUAGES.get(key, key)


def label(text: str) -> str:
    """Text of others as a label: never a formula, on one line, without the end of a long text."""
    shown = "".join(character if character.isprintable() else " " for character in text).replace("$", r"\$")
    return shown if len(shown) <= _LONGEST_LABEL else f"{shown[:_LONGEST_LABEL]}…"


def series(rows: Sequence[Mapping[str, Any]], key: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values of one metric: two arrays of equal length, without the rows that lack the metric."""
    pairs = [(row["step"], row[key]) for row in rows if row.get(key) is not None]
    steps, values = zip(*pairs, strict=True) if pairs else ((), ())
    return np.asarray(steps, np.int64), np.asarray(values, np.float64)


def smoothing_width(count: int) -> int:
    """The odd width of the running mean that shows `count` points; 1, which smooths nothing, below 80 points."""
    return 2 * (count // 80) + 1


def running_mean(values: np.ndarray, *, width: int) -> np.ndarray:
    """Centred mean over `width` (odd) values, fewer at both ends. Values that are not finite are left out."""
    known = np.isfinite(values)
    window = np.ones(width)
    half = width // 2
    sums = np.convolve(np.where(known, values, 0.0), window)[half : half + len(values)]
    counts = np.convolve(known.astype(float), window)[half : half + len(values)]
    return np.divide(sums, counts, out=np.full(len(values), np.nan), where=counts > 0)


def subplots(*, rows: int, columns: int, size: tuple[float, float], heights: Sequence[float]):
    """A new figure of `size` inches and its axes [rows, columns]. The panels of a column share their x axis."""
    # Figure, not pyplot: no global state, no display, and safe outside the main thread. It draws with Agg.
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(rows, columns, sharex="col", squeeze=False, gridspec_kw={"height_ratios": heights})
    return figure, axes


def legend(figure, ax, *, columns: int, title: str = "") -> None:
    """The legend of `ax`, above all panels so that it covers no curve. A single label gets no legend.

    The entries are in reading order: from left to right, then the next row. Matplotlib fills columns first.
    """
    handles, labels = ax.get_legend_handles_labels()
    if len(labels) < 2:
        return
    columns = min(columns, len(labels))
    order = [index for column in range(columns) for index in range(column, len(labels), columns)]
    entries = [handles[index] for index in order], [labels[index] for index in order]
    figure.legend(*entries, loc="outside upper center", ncols=columns, frameon=False, title=title or None)


def save_figure(figure, path: Path) -> None:
    """Writes a PNG atomically."""
    with atomic_path(Path(path)) as temporary:
        # No software version inside: the same data gives the same bytes.
        figure.savefig(temporary, format="png", metadata={"Software": None})


def early_step_axes(axes: Iterable[Any], curves: Sequence[Sequence[int]]) -> str:
    """Gives all matplotlib `axes` one step axis that shows the first steps of `curves` widely; returns its label.

    The axis is smooth (inverse hyperbolic sine): close to linear from step 0 to the first positive step, close to
    logarithmic later. With fewer than two positive steps the axes stay linear.
    """
    from matplotlib.ticker import FixedLocator, NullLocator

    starts = [min(positive) for steps in curves if (positive := [step for step in steps if step > 0])]
    first, last = max(starts, default=0), max((max(steps, default=0) for steps in curves), default=0)
    if first >= last:
        return "Optimizer step"
    rounded = [m * 10**power for power in range(len(str(last))) for m in (1, 2, 5)]
    ticks = [0, first, *(tick for tick in rounded if first * 1.5 < tick <= last)]
    for ax in axes:
        ax.set_xscale("asinh", linear_width=first)
        ax.xaxis.set_major_locator(FixedLocator(ticks))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.xaxis.set_major_formatter(lambda step, _: f"{step:,.0f}")
        ax.set_xlim(-0.15 * first, last * 1.1)
    return f"Optimizer step (log scale from {first})"


def count_axis(axis, *, most: float, log: bool = False) -> None:
    """Makes a matplotlib `axis` one of counts up to `most`: marks at a few whole numbers, written in full.

    A logarithmic axis begins below 1, so that a single one is seen; where marks at powers of ten would be few, there
    are some at 2 and 5 times them.
    """
    from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator

    if log:
        steps = (1, 2, 5) if most < _FEW_POWERS else (1,)
        axis.set_major_locator(FixedLocator([0, *(m * 10**power for power in range(13) for m in steps)]))
        axis.set_minor_locator(NullLocator())
    else:
        axis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    axis.set_major_formatter(lambda count, _: f"{count:,.0f}")


def difference_axis(ax, *, reference: str, unit: str) -> None:
    """A labelled y axis of differences to `reference`: signed, linear within ±0.01, logarithmic beyond."""
    from matplotlib.ticker import NullLocator

    ax.set_yscale("symlog", linthresh=_LINEAR_WITHIN, linscale=1)
    ax.margins(y=0.12)
    ax.yaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_major_formatter(lambda value, _: f"{value:+.2g}".replace("-", "\N{MINUS SIGN}") if value else "0")
    ax.set_ylabel(f"Difference to\n{reference}{f' ({unit})' if unit else ''}\nlog beyond ±{_LINEAR_WITHIN:g}")
