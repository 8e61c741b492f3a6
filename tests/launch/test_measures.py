"""Measures, against what was written."""

import math

import numpy as np
import pytest

from allam_jax.errors import UserError
from allam_jax.files import write_json
from allam_jax.launch.measures import (
    all_metrics,
    computed,
    curve,
    first,
    largest,
    last,
    mean_of_last,
    metric,
    result,
)
from allam_jax.training.metrics import MetricsWriter

LOSSES = {1: 5.0, 2: math.nan, 3: 3.0, 4: 2.0}


@pytest.fixture
def directories(tmp_path):
    with MetricsWriter(tmp_path, tensorboard=False) as writer:
        writer.write(0, {"eval/ar/bits_per_byte": 9.0})
        for step, loss in LOSSES.items():
            writer.write(step, {"loss": loss, "norms": np.array([step, 2.0 * step])})
        writer.write(4, {"eval/ar/bits_per_byte": 8.0})
    write_json(tmp_path / "result.json", {"result": {"step0": {"ar": {"kl": 0.5}}}})
    return {"train": tmp_path}


@pytest.mark.parametrize(
    ("reduce", "value"),
    [(last, 2.0), (first, 5.0), (largest, 5.0), (mean_of_last(2), 2.5)],
    ids=["last", "first", "largest", "mean_of_last"],
)
def test_a_metric_becomes_one_number(reduce, value, directories):
    assert metric("x", key="loss", title="", reduce=reduce).read(directories) == value


def test_a_curve_has_the_steps_that_have_the_metric(directories):
    steps, values = curve("x", key="eval/ar/bits_per_byte", title="").read(directories)
    assert (steps.tolist(), values.tolist()) == ([0, 4], [9.0, 8.0])


def test_results_and_functions(directories):
    assert result("x", path="step0/ar/kl", stage="train", title="").read(directories) == 0.5
    double = computed("x", lambda folders: 2 * len(folders), stages=("train",), title="")
    assert double.read(directories) == 2
    with pytest.raises(UserError, match="the result has no 'step0/en/kl'; at 'en' it has ar"):
        result("x", path="step0/en/kl", stage="train", title="").read(directories)


def test_a_metric_that_is_not_there_is_told_with_those_that_are(directories):
    with pytest.raises(UserError, match="no metric 'los'; it has eval/ar/bits_per_byte, loss, norms"):
        metric("x", key="los", title="").read(directories)


def test_all_metrics_split_vectors(directories):
    points = all_metrics(directories["train"] / "metrics.jsonl")
    assert set(points) == {"loss", "norms/00", "norms/01", "eval/ar/bits_per_byte"}
    assert points["norms/01"] == [(1, 2.0), (2, 4.0), (3, 6.0), (4, 8.0)]
    assert [step for step, value in points["loss"] if not math.isnan(value)] == [1, 3, 4]
