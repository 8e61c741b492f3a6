"""The kinds of figures that an experiment can ask for; every one shows the spread over seeds."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from allam_jax.ablation.measures import Measure
from allam_jax.ablation.outcomes import Outcome, by_arm, by_seed, mean_curve, selected, summarise
from allam_jax.ablation.vary import SEED
from allam_jax.report.style import (
    COLOURS,
    MARKERS,
    STYLE,
    STYLES,
    grid,
    legend,
    running_mean,
    save,
    signed_logarithmic,
    step_axis,
)

_MANY_POINTS = 60  # from so many steps on, a curve is shown as its running mean
_SPREAD = "shaded: ± standard deviation over seeds"


class Figure(Protocol):
    """What an experiment's `figures` are made of."""

    @property
    def what(self) -> str:
        """For messages."""

    @property
    def name(self) -> str:
        """Of the file, without ending."""

    @property
    def caption(self) -> str:
        """What is seen, in a sentence."""

    @property
    def measure_names(self) -> tuple[str, ...]:
        """The measures it shows."""

    @property
    def axis_names(self) -> tuple[str, ...]:
        """The axes it is drawn by."""

    def draw(self, outcomes: Sequence[Outcome], measures: Sequence[Measure], path: Path) -> None:
        """Writes a PNG of these runs; `measures` are those of `measure_names`, in order."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Common:
    """What all kinds have: a name, measures (a panel for each), the axes that tell lines apart, and a caption."""

    name: str
    measures: tuple[str, ...]
    by: tuple[str, ...]
    caption: str

    @property
    def what(self) -> str:
        return f"figure {self.name!r}"

    @property
    def measure_names(self) -> tuple[str, ...]:
        return self.measures

    @property
    def axis_names(self) -> tuple[str, ...]:
        return self.by


@dataclasses.dataclass(frozen=True, kw_only=True)
class Curves(_Common):
    """Curves over the optimizer steps: mean over seeds with a band; a panel for each measure, a line for each arm.

    Attributes:
        reference: axis -> setting of an arm; a second row shows the difference of the others to it, seed by seed.
        log_steps: a logarithmic step axis, for what moves most at the start.
        only: the settings of the first axis to show; empty shows all.
        from_step: the first step to show.
    """

    reference: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    log_steps: bool = True
    only: tuple[Any, ...] = ()
    from_step: int = 0

    @property
    def axis_names(self) -> tuple[str, ...]:
        """See Figure."""
        return (*self.by, *self.reference)

    def draw(self, outcomes: Sequence[Outcome], measures: Sequence[Measure], path: Path) -> None:
        """See Figure."""
        import matplotlib

        rows = 1 + bool(self.reference)
        shown = [run for run in outcomes if not self.only or run.labels[self.by[0]] in self.only]
        with matplotlib.rc_context(STYLE):
            size = (max(3.3 * len(measures), 5.0), 4.8 if self.reference else 3.4)
            figure, axes = grid(rows=rows, columns=len(measures), size=size, heights=(2, 1)[:rows])
            for column, measure in enumerate(measures):
                ax = axes[0, column]
                drawn = []
                smoothed = False
                base = selected(outcomes, self.reference) if self.reference else []
                for index, (arm, runs) in enumerate(by_arm(shown, self.by).items()):
                    steps, mean, std = self._shown(*mean_curve(runs, measure.name))
                    smoothed |= _band(ax, steps, mean, std, index=index, label=arm_name(arm))
                    drawn.append(list(zip(steps.tolist(), mean.tolist(), strict=True)))
                    if self.reference:
                        difference = self._shown(*_difference(runs, base, measure.name))
                        _band(axes[1, column], *difference, index=index, label="")
                _name(ax, measure)
                if self.log_steps:
                    step_axis(axes[-1, column], drawn)
                axes[-1, column].set_xlabel("Optimizer step" + (" (running mean)" if smoothed else ""))
                if self.reference:
                    signed_logarithmic(axes[1, column])
            if self.reference:
                axes[1, 0].set_ylabel(f"Difference to\n{arm_name(tuple(self.reference.values()))}")
            figure.align_ylabels()
            _finish(figure, axes[0, 0], path, note=_SPREAD)

    def _shown(self, steps: np.ndarray, *values: np.ndarray) -> tuple[np.ndarray, ...]:
        return tuple(array[steps >= self.from_step] for array in (steps, *values))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Against(_Common):
    """Numbers against a swept setting: mean over seeds with a band, each seed as a dot; a panel for each measure.

    Attributes:
        x: the axis of the sweep along the x axis; its settings are numbers.
        x_label: with its unit.
        log_x: a logarithmic x axis.
        reference: axis -> setting of an arm; a second row shows the difference of all to it, seed by seed.
    """

    x: str
    x_label: str
    by: tuple[str, ...] = ()
    log_x: bool = False
    reference: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def axis_names(self) -> tuple[str, ...]:
        """See Figure."""
        return (self.x, *self.by, *self.reference)

    def draw(self, outcomes: Sequence[Outcome], measures: Sequence[Measure], path: Path) -> None:
        """See Figure."""
        import matplotlib

        rows = 1 + bool(self.reference)
        with matplotlib.rc_context(STYLE):
            size = (max(3.3 * len(measures), 5.0), 4.8 if self.reference else 3.4)
            figure, axes = grid(rows=rows, columns=len(measures), size=size, heights=(2, 1)[:rows])
            for ax, below, measure in zip(axes[0], axes[-1], measures, strict=True):
                base = by_seed(selected(outcomes, self.reference), measure.name) if self.reference else {}
                for index, (arm, runs) in enumerate(by_arm(outcomes, self.by).items()):
                    points = _over(runs, x=self.x, measure=measure.name)
                    _band(ax, *points, index=index, label=arm_name(arm), smooth=False)
                    dots = [
                        (run.labels[self.x], run.values[measure.name]) for run in runs if measure.name in run.values
                    ]
                    ax.plot(*zip(*dots, strict=True), ".", color=_colour(index), alpha=0.45, markersize=4)
                    if self.reference:
                        paired = [
                            dataclasses.replace(run, values={measure.name: run.values[measure.name] - base[seed]})
                            for run in runs
                            if measure.name in run.values and (seed := run.labels.get(SEED)) in base
                        ]
                        _band(
                            below, *_over(paired, x=self.x, measure=measure.name), index=index, label="", smooth=False
                        )
                _name(ax, measure)
                below.set_xlabel(self.x_label)
                if self.reference:
                    signed_logarithmic(below)
                if self.log_x:
                    _logarithmic(below, {run.labels[self.x] for run in outcomes})
            if self.reference:
                axes[-1, 0].set_ylabel(f"Difference to\n{arm_name(tuple(self.reference.values()))}")
            figure.align_ylabels()
            _finish(figure, axes[0, 0], path, note=f"{_SPREAD}; dots: each seed")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Together:
    """Several measures of the same unit against a swept setting, each a line with a band; panels side by side.

    Attributes:
        name: of the file.
        panels: title -> the measures drawn in it.
        lines: a label for each measure of a panel, the same in all panels.
        x, x_label, log_x: see Against.
        caption: what is seen.
    """

    name: str
    panels: Mapping[str, tuple[str, ...]]
    lines: tuple[str, ...]
    x: str
    x_label: str
    caption: str
    log_x: bool = False

    @property
    def what(self) -> str:
        """See Figure."""
        return f"figure {self.name!r}"

    @property
    def measure_names(self) -> tuple[str, ...]:
        """See Figure."""
        return tuple(name for names in self.panels.values() for name in names)

    @property
    def axis_names(self) -> tuple[str, ...]:
        """See Figure."""
        return (self.x,)

    def draw(self, outcomes: Sequence[Outcome], measures: Sequence[Measure], path: Path) -> None:
        """See Figure."""
        import matplotlib

        units = {measure.name: measure.unit for measure in measures}
        with matplotlib.rc_context(STYLE):
            size = (max(3.0 * len(self.panels), 5.0), 3.4)
            figure, axes = grid(rows=1, columns=len(self.panels), size=size, heights=(1,))
            for ax, (title, names) in zip(axes[0], self.panels.items(), strict=True):
                for index, (name, label) in enumerate(zip(names, self.lines, strict=True)):
                    points = _over(outcomes, x=self.x, measure=name)
                    # Lines may lie on each other: dashes show both.
                    _band(ax, *points, index=index, label=label, smooth=False, style=index)
                ax.set_title(title)
                ax.set_xlabel(self.x_label)
                ax.set_ylabel(units[names[0]])
                ax.set_ylim(bottom=0)
                if self.log_x:
                    _logarithmic(ax, {run.labels[self.x] for run in outcomes})
            _finish(figure, axes[0, 0], path, note=_SPREAD)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dots(_Common):
    """Numbers by arm: mean and standard deviation over seeds, each seed as a dot; a panel for each measure."""

    def draw(self, outcomes: Sequence[Outcome], measures: Sequence[Measure], path: Path) -> None:
        """See Figure."""
        import matplotlib

        arms = by_arm(outcomes, self.by)
        with matplotlib.rc_context(STYLE):
            size = (max(2.9 * len(measures) + 1.0, 5.0), 1.3 + 0.36 * len(arms))
            figure, axes = grid(rows=1, columns=len(measures), size=size, heights=(1,))
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
            note = "dot and bar: mean ± standard deviation over seeds; ticks: each seed"
            _finish(figure, axes[0, 0], path, note=note)


def arm_name(arm: tuple[Any, ...]) -> str:
    """The settings of an arm as a legend shows them."""
    return ", ".join(f"{part:g}" if isinstance(part, float) else str(part) for part in arm)


def _over(runs: Sequence[Outcome], *, x: str, measure: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Settings of the axis `x` in order, with the mean and the spread of the measure at each that has it."""
    points = sorted(
        (settings[0], summarise(by_seed(some, measure).values())) for settings, some in by_arm(runs, (x,)).items()
    )
    known = [(setting, summary) for setting, summary in points if summary.count]
    xs = np.asarray([setting for setting, _ in known], np.float64)
    means = np.asarray([summary.mean for _, summary in known])
    return xs, means, np.nan_to_num([summary.std for _, summary in known])


def _logarithmic(ax, settings: set[float]) -> None:
    """A logarithmic x axis with a tick at each setting."""
    ax.set_xscale("log")
    ax.set_xticks(sorted(settings), [f"{setting:g}" for setting in sorted(settings)])
    ax.minorticks_off()


def _colour(index: int) -> str:
    return COLOURS[index % len(COLOURS)]


def _band(
    ax,
    xs: np.ndarray,
    mean: np.ndarray,
    std: np.ndarray,
    *,
    index: int,
    label: str,
    smooth: bool = True,
    style: int | None = None,
) -> bool:
    """Draws a line with its band; returns whether it was smoothed, being too long to show every point."""
    style = index // len(COLOURS) if style is None else style
    look: dict[str, Any] = {"color": _colour(index), "linestyle": STYLES[style % len(STYLES)]}
    many = smooth and len(xs) >= _MANY_POINTS
    if many:
        width = 2 * (len(xs) // 80) + 1
        mean, std = running_mean(mean, width=width), running_mean(std, width=width)
    else:
        look["marker"] = MARKERS[index % len(MARKERS)]
    ax.plot(xs, mean, label=label, **look)
    ax.fill_between(xs, mean - std, mean + std, color=_colour(index), alpha=0.18, linewidth=0)
    return many


def _name(ax, measure: Measure) -> None:
    """Title and unit; what is positive is shown from 0, whatever its spread."""
    ax.set_title(measure.title)
    ax.set_ylabel(measure.unit or measure.title)
    if ax.get_ylim()[0] < 0 and all(np.nanmin(line.get_ydata(), initial=np.inf) > 0 for line in ax.lines):
        ax.set_ylim(bottom=0)


def _difference(
    runs: Sequence[Outcome], base: Sequence[Outcome], measure: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Steps, mean and spread of the difference of each run to the base's of the same seed."""
    base_of = {outcome.labels.get(SEED): outcome for outcome in base if measure in outcome.curves}
    differences = []
    for outcome in runs:
        other = base_of.get(outcome.labels.get(SEED))
        if other is None or measure not in outcome.curves:
            continue
        at_step = dict(zip(*other.curves[measure], strict=True))
        steps, values = outcome.curves[measure]
        shared = [(step, value - at_step[step]) for step, value in zip(steps, values, strict=True) if step in at_step]
        xs, ys = (np.asarray(column) for column in zip(*shared, strict=True)) if shared else (np.empty(0), np.empty(0))
        differences.append(dataclasses.replace(outcome, curves={measure: (xs, ys)}))
    return mean_curve(differences, measure)


def _finish(figure, ax, path: Path, *, note: str) -> None:
    legend(figure, ax, columns=round(figure.get_figwidth() / 1.35))
    figure.supxlabel(note, fontsize=7.5, color="#444444")
    save(figure, path)
