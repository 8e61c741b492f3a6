"""The measures of runs: numbers and curves, read from the files of their stages."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from allam_jax.errors import UserError
from allam_jax.files import read_json
from allam_jax.report.style import series
from allam_jax.tasks.recipe import RESULT_FILE
from allam_jax.training.metrics import read_metrics

METRICS_FILE = "metrics.jsonl"
Reduce = Callable[[np.ndarray, np.ndarray], float]  # steps and values of a metric -> one number


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measure:
    """One number, or one curve, of every run.

    Attributes:
        name: the name for claims, figures and the column of the Parquet file.
        title: the heading of the column or panel.
        unit: the unit for the axis, such as "nats/token"; empty for a pure number.
        stages: the stages that the measure reads. A sweep runs these and the stages that they need, and no others.
        read: directory of each stage -> a number, or (steps, values) for a curve.
        curve: whether `read` returns a curve.
    """

    name: str
    title: str
    unit: str
    stages: tuple[str, ...]
    read: Callable[[Mapping[str, Path]], Any]
    curve: bool = False

    @property
    def label(self) -> str:
        """Title and unit for the heading of a table column."""
        return f"{self.title} ({self.unit})" if self.unit else self.title


def last(steps: np.ndarray, values: np.ndarray) -> float:
    """The value at the last step that has a value."""
    return float(values[-1])


def mean_of_last(count: int) -> Reduce:
    """The mean of the last `count` logged values, which has less noise than a single batch."""
    return lambda steps, values: float(np.mean(values[-count:]))


def spike_size(count: int) -> Reduce:
    """The size of a first spike: the largest of the first `count` values over the median of the later values."""

    def reduce(steps: np.ndarray, values: np.ndarray) -> float:
        if len(values) <= count:
            raise UserError(f"spike_size({count}): the run has {len(values)} values; expected more")
        return float(np.nanmax(values[:count]) / np.nanmedian(values[count:]))

    return reduce


def spike_rate(*, factor: float, window: int = 20) -> Reduce:
    """Spikes per 100 updates. A spike is a value above `factor` times the median of the `window` values before it.

    The first `window` values cannot be spikes.
    """

    def reduce(steps: np.ndarray, values: np.ndarray) -> float:
        if len(values) <= window:
            raise UserError(f"spike_rate: the run has {len(values)} values; expected more than the window of {window}")
        before = np.lib.stride_tricks.sliding_window_view(values, window)[:-1]
        return float(100 * np.mean(values[window:] > factor * np.nanmedian(before, axis=1)))

    return reduce


def metric(name: str, *, key: str, stage: str = "train", title: str, unit: str = "", reduce: Reduce = last) -> Measure:
    """A number from one metric of a training stage, such as `loss` or `eval/held_out/ar/bits_per_byte`."""

    def read(directories: Mapping[str, Path]) -> float:
        return reduce(*_points(directories[stage] / METRICS_FILE, key))

    return Measure(name=name, title=title, unit=unit, stages=(stage,), read=read)


def curve(name: str, *, key: str, stage: str | tuple[str, ...] = "train", title: str, unit: str = "") -> Measure:
    """One metric of a training stage, at every step that has it.

    Several stages, each a branch of an earlier one, give one curve. It follows each stage up to the first step of the
    next one.
    """
    stages = (stage,) if isinstance(stage, str) else stage

    def read(directories: Mapping[str, Path]) -> tuple[np.ndarray, np.ndarray]:
        steps, values = _points(directories[stages[0]] / METRICS_FILE, key)
        for later in stages[1:]:
            more_steps, more_values = _points(directories[later] / METRICS_FILE, key)
            kept = steps < more_steps[0]
            steps = np.concatenate([steps[kept], more_steps])
            values = np.concatenate([values[kept], more_values])
        return steps, values

    return Measure(name=name, title=title, unit=unit, stages=stages, read=read, curve=True)


def result(name: str, *, path: str, stage: str, title: str, unit: str = "") -> Measure:
    """A number from the result of a stage; `path` has its keys joined with `/`, such as `step0/ar/kl`."""

    def read(directories: Mapping[str, Path]) -> float:
        file = directories[stage] / RESULT_FILE
        value = read_json(file, keys={"result": dict})["result"]
        for part in path.split("/"):
            if not isinstance(value, Mapping) or part not in value:
                keys = ", ".join(value) if isinstance(value, Mapping) else "no keys"
                raise UserError(f"{file}: the result has no {path!r}; instead of {part!r} it has {keys}")
            value = value[part]
        return float(value)

    return Measure(name=name, title=title, unit=unit, stages=(stage,), read=read)


def computed(
    name: str, function: Callable[[Mapping[str, Path]], float], *, stages: tuple[str, ...], title: str, unit: str = ""
) -> Measure:
    """Any other number. `function` receives the directory of each stage of the run."""
    return Measure(name=name, title=title, unit=unit, stages=stages, read=function)


def all_metrics(file: Path) -> dict[str, list[tuple[int, float]]]:
    """Metric -> (step, value) points of a metrics.jsonl. The elements of a vector are `name/00`, `name/01`, ..."""
    points: dict[str, list[tuple[int, float]]] = {}
    for row in read_metrics(file):
        for key, value in row.items():
            if key == "step" or value is None:
                continue
            elements = {key: value}
            if isinstance(value, list):
                elements = {f"{key}/{index:02d}": element for index, element in enumerate(value)}
            for name, element in elements.items():
                points.setdefault(name, []).append((row["step"], float(element)))
    return points


def _points(file: Path, key: str) -> tuple[np.ndarray, np.ndarray]:
    rows = read_metrics(file)
    steps, values = series(rows, key)
    if not len(steps):
        known = sorted({name for row in rows for name in row if name != "step"})
        raise UserError(f"{file}: no metric {key!r}; it has {', '.join(known)}")
    return steps, np.where([math.isfinite(value) for value in values], values, np.nan)
