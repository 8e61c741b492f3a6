"""The results of the runs of a sweep, with their mean and spread over seeds."""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from allam_jax.ablation.vary import SEED


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The measures of one run.

    Attributes:
        run: the name of the run.
        labels: axis -> setting.
        values: measure -> number.
        curves: measure -> (steps, values), two arrays of equal length.
        seconds: the time of the run's own stages, without the stages that it shares with other runs.
    """

    run: str
    labels: dict[str, Any]
    values: dict[str, float]
    curves: dict[str, tuple[np.ndarray, np.ndarray]]
    seconds: float


@dataclasses.dataclass(frozen=True)
class Summary:
    """Mean, sample standard deviation (NaN below two values) and number of some values."""

    mean: float
    std: float
    count: int


def summarise(values: Iterable[float]) -> Summary:
    """The Summary of the values; its mean is NaN if there are none."""
    array = np.asarray(list(values), np.float64)
    if not array.size:
        return Summary(math.nan, math.nan, 0)
    return Summary(float(np.mean(array)), float(np.std(array, ddof=1)) if array.size > 1 else math.nan, array.size)


def by_arm(outcomes: Sequence[Outcome], axes: Sequence[str]) -> dict[tuple[Any, ...], list[Outcome]]:
    """Groups runs by their settings of `axes`; the groups are in the order of their first runs."""
    arms: dict[tuple[Any, ...], list[Outcome]] = {}
    for outcome in outcomes:
        arms.setdefault(tuple(outcome.labels.get(axis) for axis in axes), []).append(outcome)
    return arms


def selected(outcomes: Sequence[Outcome], labels: Mapping[str, Any]) -> list[Outcome]:
    """The runs whose labels include these."""
    return [outcome for outcome in outcomes if labels.items() <= outcome.labels.items()]


def by_seed(outcomes: Sequence[Outcome], measure: str) -> dict[Any, float]:
    """Seed -> value of a measure, for the runs of one arm; runs without a value are left out."""
    return {outcome.labels.get(SEED): outcome.values[measure] for outcome in outcomes if measure in outcome.values}


def aligned_curves(outcomes: Sequence[Outcome], measure: str) -> tuple[np.ndarray, np.ndarray]:
    """The steps that the curves of all runs have, ascending, and the values [runs, steps] there.

    Runs without the curve are left out.
    """
    curves = [dict(zip(*outcome.curves[measure], strict=True)) for outcome in outcomes if measure in outcome.curves]
    steps = sorted(set.intersection(*(set(curve) for curve in curves))) if curves else []
    values = np.asarray([[curve[step] for step in steps] for curve in curves], np.float64)
    return np.asarray(steps, np.int64), values.reshape(len(curves), len(steps))
