"""The kinds of figures that an experiment can draw. Each shows the mean over seeds and the spread."""

import abc
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from allam_jax.ablation.measures import Measure
from allam_jax.ablation.outcomes import Outcome, aligned_curves, by_arm, by_seed, selected, summarise
from allam_jax.ablation.vary import SEED
from allam_jax.report.style import (
    COLOURS,
    MARKERS,
    STYLE,
    STYLES,
    difference_axis,
    early_step_axes,
    legend,
    running_mean,
    save_figure,
    smoothing_width,
    subplots,
)

_MANY_POINTS = 60  # from this number on, a curve has no markers


@dataclasses.dataclass(frozen=True, kw_only=True)
class Figure(abc.ABC):
    """A figure of an experiment.

    Attributes:
        name: the file name, without its ending.
        caption: a sentence that says what the figure shows.
        measures: the names of the measures; each has a panel.
        by: the axes of the sweep whose settings are separate lines.
    """

    name: str
    caption: str
    measures: tuple[str, ...] = ()
    by: tuple[str, ...] = ()

    @property
    def what(self) -> str:
        """The figure as error messages name it."""
        return f"figure {self.name!r}"

    @property
    def measure_names(self) -> tuple[str, ...]:
        """The measures that the figure shows, in the order in which `draw` takes them."""
        return self.measures

    @property
    def axis_names(self) -> tuple[str, ...]:
        """The axes of the sweep that the figure uses."""
        return self.by

    def draw(self, outcomes: Sequence[Outcome], measures: Sequence[Measure], path: Path) -> None:
        """Draws the runs into the PNG `path`; `measures` are those of `measure_names`, in order."""
        import matplotlib

        with matplotlib.rc_context(STYLE):
            figure, axes = self._drawn(outcomes, measures)
            figure.align_ylabels()
            legend(figure, axes[0, 0], columns=round(figure.get_figwidth() / 1.35), title=self._legend_title)
            figure.supxlabel(self._note, fontsize=7.5, color="#444444")
            save_figure(figure, path)

    @abc.abstractmethod
    def _drawn(self, outcomes: Sequence[Outcome], measures: Sequence[Measure]) -> tuple[Any, np.ndarray]:
        """A figure with its axes [rows, columns]."""

    @property
    def _legend_title(self) -> str:
        return ", ".join(self.by)

    @property
    def _note(self) -> str:
        return "shaded: ± standard deviation over seeds"


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Compared(Figure):
    """A figure with an optional second row, which shows the difference to the arm that `reference` selects."""

    reference: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def _panels(self, measures: Sequence[Measure]):
        rows = 1 + bool(self.reference)
        size = (max(3.3 * len(measures), 5.0), 5.4 if self.reference else 3.4)
        figure, axes = subplots(rows=rows, columns=len(measures), size=size, heights=(3, 2)[:rows])
        if self.reference:
            for ax, measure in zip(axes[1], measures, strict=True):
                difference_axis(ax, reference=_reference_name(self.reference), unit=measure.unit)
        return figure, axes

    def _base(self, outcomes: Sequence[Outcome]) -> list[Outcome]:
        return selected(outcomes, self.reference) if self.reference else []


@dataclasses.dataclass(frozen=True, kw_only=True)
class Curves(_Compared):
    """Curves over the optimizer steps: the mean over seeds with a band, a panel per measure, a line per arm.

    A long curve shows running means. The band is then the standard deviation of the running means.

    Attributes:
        reference: axis -> setting of an arm. A second row shows the difference to this arm, seed by seed.
        log_steps: whether the step axis shows the first steps widely.
        only: the settings of the first axis in `by` to show; empty shows all.
        from_step: the first step to show.
    """

    log_steps: bool = True
    only: tuple[Any, ...] = ()
    from_step: int = 0

    @property
    def axis_names(self) -> tuple[str, ...]:
        """See Figure."""
        return (*self.by, *self.reference)

    def _drawn(self, outcomes: Sequence[Outcome], measures: Sequence[Measure]) -> tuple[Any, np.ndarray]:
        shown = [run for run in outcomes if not self.only or run.labels[self.by[0]] in self.only]
        figure, axes = self._panels(measures)
        drawn: list[list[int]] = []
        for column, measure in enumerate(measures):
            width = 1
            for index, (arm, runs) in enumerate(by_arm(shown, self.by).items()):
                steps, values = self._shown(*aligned_curves(runs, measure.name))
                width = max(width, smoothing_width(len(steps)))
                _curve_band(axes[0, column], steps, values, index=index, label=arm_name(arm))
                drawn.append(steps.tolist())
                if self.reference:
                    paired = _minus(runs, self._base(outcomes), measure.name)
                    curves = self._shown(*aligned_curves(paired, measure.name))
                    _curve_band(axes[1, column], *curves, index=index, label="")
            _name(axes[0, column], measure, note=f" (running mean of {width})" if width > 1 else "")
        label = early_step_axes(axes[-1], drawn) if self.log_steps else "Optimizer step"
        for ax in axes[-1]:
            ax.set_xlabel(label)
        return figure, axes

    def _shown(self, steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return steps[steps >= self.from_step], values[:, steps >= self.from_step]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Swept(Figure):
    """A figure with a swept setting along the x axis.

    Attributes:
        x: the axis of the sweep; its settings are numbers.
        x_label: the label of the x axis, with its unit.
        log_x: whether the x axis is logarithmic, with a tick at each setting.
    """

    x: str
    x_label: str
    log_x: bool = False

    def _name_x(self, ax, outcomes: Sequence[Outcome]) -> None:
        ax.set_xlabel(self.x_label)
        if self.log_x:
            settings = sorted({run.labels[self.x] for run in outcomes})
            ax.set_xscale("log")
            ax.set_xticks(settings, [f"{setting:g}" for setting in settings])
            ax.minorticks_off()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Against(_Swept, _Compared):
    """Numbers against a swept setting: the mean over seeds with a band, a dot per seed, a panel per measure.

    Attributes:
        from_zero: whether the y axes begin at 0, as amounts need it.
        reference: axis -> setting of an arm. A second row shows the difference to this arm, seed by seed.
    """

    from_zero: bool = False

    @property
    def axis_names(self) -> tuple[str, ...]:
        """See Figure."""
        return (self.x, *self.by, *self.reference)

    def _drawn(self, outcomes: Sequence[Outcome], measures: Sequence[Measure]) -> tuple[Any, np.ndarray]:
        figure, axes = self._panels(measures)
        for ax, below, measure in zip(axes[0], axes[-1], measures, strict=True):
            base = by_seed(self._base(outcomes), measure.name)
            for index, (arm, runs) in enumerate(by_arm(outcomes, self.by).items()):
                values = {run.run: run.values[measure.name] for run in runs if measure.name in run.values}
                _band(ax, *_over(runs, x=self.x, measure=measure.name), index=index, label=arm_name(arm))
                settings = [run.labels[self.x] for run in runs if run.run in values]
                ax.plot(settings, list(values.values()), ".", color=_colour(index), alpha=0.45, markersize=4)
                if self.reference:
                    paired = [
                        dataclasses.replace(run, values={measure.name: values[run.run] - base[seed]})
                        for run in runs
                        if run.run in values and (seed := run.labels.get(SEED)) in base
                    ]
                    _band(below, *_over(paired, x=self.x, measure=measure.name), index=index, label="")
            _name(ax, measure)
            if self.from_zero:
                ax.set_ylim(bottom=0)
            self._name_x(below, outcomes)
        return figure, axes

    @property
    def _note(self) -> str:
        return f"{super()._note}; dots: each seed"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Together(_Swept):
    """Several measures of one unit against a swept setting, each a line with a band. The y axes begin at 0.

    Attributes:
        panels: title -> the measures of the panel; replaces `measures`.
        lines: the label of each measure of a panel, the same in all panels.
        lines_title: what the labels are, for the legend.
    """

    panels: Mapping[str, tuple[str, ...]]
    lines: tuple[str, ...]
    lines_title: str = ""

    @property
    def measure_names(self) -> tuple[str, ...]:
        """See Figure."""
        return tuple(name for names in self.panels.values() for name in names)

    @property
    def axis_names(self) -> tuple[str, ...]:
        """See Figure."""
        return (self.x,)

    def _drawn(self, outcomes: Sequence[Outcome], measures: Sequence[Measure]) -> tuple[Any, np.ndarray]:
        units = {measure.name: measure.unit for measure in measures}
        size = (max(3.0 * len(self.panels), 5.0), 3.4)
        figure, axes = subplots(rows=1, columns=len(self.panels), size=size, heights=(1,))
        for ax, (title, names) in zip(axes[0], self.panels.items(), strict=True):
            for index, (name, label) in enumerate(zip(names, self.lines, strict=True)):
                # Lines may coincide: different dashes keep both visible.
                _band(ax, *_over(outcomes, x=self.x, measure=name), index=index, label=label, style=index)
            ax.set_title(title)
            ax.set_ylabel(units[names[0]])
            ax.set_ylim(bottom=0)
            self._name_x(ax, outcomes)
        return figure, axes

    @property
    def _legend_title(self) -> str:
        return self.lines_title


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dots(Figure):
    """Numbers by arm: mean and standard deviation over seeds, a tick per seed, a panel per measure."""

    def _drawn(self, outcomes: Sequence[Outcome], measures: Sequence[Measure]) -> tuple[Any, np.ndarray]:
        arms = by_arm(outcomes, self.by)
        size = (max(2.9 * len(measures) + 1.0, 5.0), 1.3 + 0.36 * len(arms))
        figure, axes = subplots(rows=1, columns=len(measures), size=size, heights=(1,))
        for column, (ax, measure) in enumerate(zip(axes[0], measures, strict=True)):
            for row, runs in enumerate(arms.values()):
                values = list(by_seed(runs, measure.name).values())
                summary = summarise(values)
                if not summary.count:
                    continue
                look = {"color": COLOURS[0], "markersize": 5, "capsize": 3, "linewidth": 1.5}
                ax.errorbar(summary.mean, row, xerr=np.nan_to_num(summary.std), fmt="o", **look)
                ax.plot(values, np.full(len(values), row), "|", color=COLOURS[1], markersize=9)
            ax.set_ylim(len(arms) - 0.5, -0.5)
            ax.set_yticks(range(len(arms)), [arm_name(arm) for arm in arms] if column == 0 else [""] * len(arms))
            ax.set_title(measure.title)
            ax.set_xlabel(measure.unit or measure.title)
            ax.locator_params(axis="x", nbins=5)  # labels of four digits must not touch
        axes[0, 0].set_ylabel(", ".join(self.by))
        return figure, axes

    @property
    def _note(self) -> str:
        return "dot and bar: mean ± standard deviation over seeds; ticks: each seed"


def arm_name(arm: tuple[Any, ...]) -> str:
    """The settings of an arm as a legend shows them."""
    return ", ".join(f"{part:g}" if isinstance(part, float) else str(part) for part in arm)


def _reference_name(reference: Mapping[str, Any]) -> str:
    """The arm as an axis label names it: numbers need the name of their axis, words do not."""
    return ", ".join(
        value if isinstance(value, str) else f"{axis} {arm_name((value,))}" for axis, value in reference.items()
    )


def _over(runs: Sequence[Outcome], *, x: str, measure: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The settings of axis `x` in order, with mean and spread of the measure where any run has it: three arrays."""
    points = sorted(
        (settings[0], summarise(by_seed(some, measure).values())) for settings, some in by_arm(runs, (x,)).items()
    )
    known = [(setting, summary) for setting, summary in points if summary.count]
    xs = np.asarray([setting for setting, _ in known], np.float64)
    means = np.asarray([summary.mean for _, summary in known])
    return xs, means, np.nan_to_num([summary.std for _, summary in known])


def _minus(runs: Sequence[Outcome], base: Sequence[Outcome], measure: str) -> list[Outcome]:
    """The runs with their curve minus that of the base's run with the same seed, at the steps that both have."""
    base_of = {outcome.labels.get(SEED): outcome for outcome in base if measure in outcome.curves}
    paired = []
    for outcome in runs:
        other = base_of.get(outcome.labels.get(SEED))
        if other is not None and measure in outcome.curves:
            (steps, values), (base_steps, base_values) = outcome.curves[measure], other.curves[measure]
            shared, ours, theirs = np.intersect1d(steps, base_steps, return_indices=True)
            paired.append(dataclasses.replace(outcome, curves={measure: (shared, values[ours] - base_values[theirs])}))
    return paired


def _colour(index: int) -> str:
    return COLOURS[index % len(COLOURS)]


def _curve_band(ax, steps: np.ndarray, values: np.ndarray, *, index: int, label: str) -> None:
    """The band of some runs' values [runs, steps]. Each run is smoothed first, so that the band is that of the line."""
    smooth = [running_mean(row, width=smoothing_width(len(steps))) for row in values] or np.empty((1, 0))
    std = np.std(smooth, axis=0, ddof=1) if len(smooth) > 1 else np.zeros(len(steps))
    _band(ax, steps, np.mean(smooth, axis=0), std, index=index, label=label)


def _band(
    ax, xs: np.ndarray, mean: np.ndarray, std: np.ndarray, *, index: int, label: str, style: int | None = None
) -> None:
    """A line with its band, and markers if it has few points."""
    style = index // len(COLOURS) if style is None else style
    marker = MARKERS[index % len(MARKERS)] if len(xs) < _MANY_POINTS else ""
    ax.fill_between(xs, mean - std, mean + std, color=_colour(index), alpha=0.12, linewidth=0)
    ax.plot(xs, mean, label=label, color=_colour(index), linestyle=STYLES[style % len(STYLES)], marker=marker)


def _name(ax, measure: Measure, *, note: str = "") -> None:
    """Title and unit. A positive measure is not shown below 0, whatever its spread."""
    ax.set_title(measure.title + note)
    ax.set_ylabel(measure.unit or measure.title)
    if ax.get_ylim()[0] < 0 and all(np.nanmin(line.get_ydata(), initial=np.inf) > 0 for line in ax.lines):
        ax.set_ylim(bottom=0)
