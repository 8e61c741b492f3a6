"""A figure of how values are distributed in several groups."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from allam_jax.report.style import COLOURS, STYLE, STYLES, label, legend, save_figure, subplots

_BINS = 40
_SHOWN = (0.5, 99.5)  # percentiles of all values between which an axis lies


def draw_distributions(path: Path, panels: Mapping[str, Mapping[str, Sequence[float]]]) -> None:
    """Draws a panel for each measure, with a line for each group: the share of its values in equal steps of the log.

    Args:
        path: of the PNG.
        panels: label of the axis -> group -> values, all above 0.
    """
    from matplotlib import rc_context

    with rc_context(STYLE):
        drawing, axes = subplots(rows=1, columns=len(panels), size=(4.2 * len(panels), 3.0), heights=[1])
        for ax, (measure, groups) in zip(axes[0], panels.items(), strict=True):
            low, high = np.percentile(np.concatenate([np.asarray(values) for values in groups.values()]), _SHOWN)
            edges = np.geomspace(low, max(high, low * 1.01), _BINS + 1)
            for place, (group, values) in enumerate(groups.items()):
                shares = np.histogram(np.clip(values, edges[0], edges[-1]), edges)[0] / len(values)
                look = {"color": COLOURS[place % len(COLOURS)], "linestyle": STYLES[place % len(STYLES)]}
                ax.stairs(shares, edges, label=label(group), **look)
            ax.set_xscale("log")
            ax.set_xlabel(measure)
        axes[0, 0].set_ylabel("Share of documents")
        legend(drawing, axes[0, 0], columns=3)
        save_figure(drawing, path)
