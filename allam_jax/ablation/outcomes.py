"""What came out of the runs of a sweep, and its mean and spread over seeds."""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from allam_jax.ablation.vary import SEED


@dataclasses.dataclass(frozen=True)
class Outcome:
    """One run's measures.

    Attributes:
        run: its name.
        labels: axis -> setting.
        values: measure -> number.
        curves: measure -> (steps, values), two arrays of equal length.
        seconds: that its own stages took; those that it shares with other runs not counted.
    """

    run: str
    labels: dict[str, Any]
    values: dict[str, float]
    curves: dict[str, tuple[np.ndarray, np.ndarray]]
    seconds: float


@dataclasses.dataclass(frozen=True)
class Summary:
    """Mean, sample standard deviation (NaN for a single value) and number of some values."""

    mean: float
    std: float
    count: int


def summarise(values: Iterable[float]) -> Summary:
    """Mean and spread. NaN for none."""
    array = np.asarray(list(values), np.float64)
    if not array.size:
        return Summary(math.nan, math.nan, 0)
    return Summary(float(np.mean(array)), float(np.std(array, ddof=1)) if array.size > 1 else math.nan, array.size)


def by_arm(outcomes: Sequence[Outcome], axes: Sequence[str]) -> dict[tuple[Any, ...], list[Outcome]]:
    """The runs with the same setting of `axes`, in the order of their first run."""
    arms: dict[tuple[Any, ...], list[Outcome]] = {}
    for outcome in outcomes:
        arms.setdefault(tuple(outcome.labels.get(axis) for axis in axes), []).append(outcome)
    return arms


def selected(outcomes: Sequence[Outcome], labels: Mapping[str, Any]) -> list[Outcome]:
    """The runs that have these labels."""
    return [outcome for outcome in outcomes if labels.items() <= outcome.labels.items()]


def by_seed(outcomes: Sequence[Outcome], measure: str) -> dict[Any, float]:
    """One arm's values of a measure, by seed."""
    return {outcome.labels.get(SEED): outcome.values[measure] for outcome in outcomes if measure in outcome.values}


def mean_curve(outcomes: Sequence[Outcome], measure: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Steps, mean and sample standard deviation of a curve over runs, at the steps that all of them have."""
    curves = [dict(zip(*outcome.curves[measure], strict=True)) for outcome in outcomes if measure in outcome.curves]
    steps = sorted(set.intersection(*(set(curve) for curve in curves))) if curves else []
    values = np.asarray([[curve[step] for step in steps] for curve in curves], np.float64).reshape(len(curves), -1)
    if not steps:
        return np.empty(0, np.int64), np.empty(0), np.empty(0)
    std = np.std(values, axis=0, ddof=1) if len(curves) > 1 else np.zeros(len(steps))
    return np.asarray(steps, np.int64), np.mean(values, axis=0), std
