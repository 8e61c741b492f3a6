"""How figures look, and the parts that several of them share. Matplotlib is imported only when one is drawn."""

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


def signed_logarithmic(ax) -> None:
    """A y axis of differences: linear within ±0.01, logarithmic beyond, with signs."""
    from matplotlib.ticker import NullLocator

    ax.set_yscale("symlog", linthresh=0.01, linscale=1)
    ax.margins(y=0.12)
    ax.yaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_major_formatter(lambda value, _: f"{value:+.2g}" if value else "0")
