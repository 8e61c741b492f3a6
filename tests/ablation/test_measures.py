"""Measures, against what was written."""

import math
import statistics

import numpy as np
import pytest

from allam_jax.ablation.answered import right, wins, without_words
from allam_jax.ablation.measures import (
    all_metrics,
    computed,
    curve,
    last,
    mean_of_last,
    metric,
    result,
    spike_rate,
    spike_size,
)
from allam_jax.errors import UserError
from allam_jax.evaluation.exact_answers import exact_answers, win_rate
from allam_jax.files import write_json, write_json_lines
from allam_jax.generation.over_rows import read_answers
from allam_jax.training.metrics import MetricsWriter
from allam_jax.training.settings import MetricsSettings

LOSSES = {1: 5.0, 2: math.nan, 3: 3.0, 4: 2.0}


@pytest.fixture
def directories(tmp_path):
    with MetricsWriter(tmp_path, MetricsSettings(tensorboard=False)) as writer:
        writer.write(0, {"eval/held_out/ar/bits_per_byte": 9.0})
        for step, loss in LOSSES.items():
            writer.write(step, {"loss": loss, "norms": np.array([step, 2.0 * step])})
        writer.write(4, {"eval/held_out/ar/bits_per_byte": 8.0})
    write_json(tmp_path / "result.json", {"result": {"step0": {"ar": {"kl": 0.5}}}})
    return {"train": tmp_path}


@pytest.mark.parametrize(
    ("reduce", "value"),
    [(last, 2.0), (mean_of_last(2), 2.5)],
    ids=["last", "mean_of_last"],
)
def test_a_metric_becomes_one_number(reduce, value, directories):
    assert metric("x", key="loss", title="", reduce=reduce).read(directories) == value


def test_a_curve_has_the_steps_that_have_the_metric(directories):
    steps, values = curve("x", key="eval/held_out/ar/bits_per_byte", title="").read(directories)
    assert (steps.tolist(), values.tolist()) == ([0, 4], [9.0, 8.0])


def answered(folder, texts):
    """Answers to prompts whose right answers are A, B, C, ..."""
    (folder / "answers").mkdir(parents=True)
    rows = [
        {
            **{"row": number, "id": f"q{number}", "language": "en", "kind": "letter", "turn": 1},
            "expected": "ABCDEFGH"[number],
            "messages": [{"role": "user", "content": f"Question {number}?"}],
            "answers": [{"text": text, "finish_reason": "eos", "tokens": 1}],
        }
        for number, text in enumerate(texts)
    ]
    write_json_lines(folder / "answers" / "00000.jsonl", rows)
    return folder


def test_answers_are_counted_and_compared_prompt_by_prompt(tmp_path):
    before = answered(tmp_path / "before", ["A", "B", "?", "x", "…", "x", "x", "x"])
    after = answered(tmp_path / "after", ["A", "x", " C\n", "D", "E", "", "…", "x"])
    folders = {"before": before, "after": after}
    assert right("x", stage="before").read(folders) == 25.0
    assert right("x", stage="after").read(folders) == 50.0
    assert without_words("x", stage="before").read(folders) == 25.0
    # Three won, one lost, four alike.
    measure = wins("x", stage="after", over="before")
    assert measure.read(folders) == pytest.approx(100 * (3 + 4 / 2) / 8)
    assert measure.stages == ("before", "after")
    assert wins("x", stage="after", over="after").read(folders) == 50.0
    with pytest.raises(UserError, match="the models have answered no prompt in common"):
        win_rate(exact_answers(read_answers(before), where="")[:1], exact_answers(read_answers(after), where="")[1:])


def test_results_and_functions(directories):
    assert result("x", path="step0/ar/kl", stage="train", title="").read(directories) == 0.5
    double = computed("x", lambda folders: 2 * len(folders), stages=("train",), title="")
    assert double.read(directories) == 2
    with pytest.raises(UserError, match="the result has no 'step0/en/kl'; instead of 'en' it has ar"):
        result("x", path="step0/en/kl", stage="train", title="").read(directories)


def test_a_metric_that_is_not_there_is_told_with_those_that_are(directories):
    with pytest.raises(UserError, match="no metric 'los'; it has eval/held_out/ar/bits_per_byte, loss, norms"):
        metric("x", key="los", title="").read(directories)


def test_all_metrics_split_vectors(directories):
    points = all_metrics(directories["train"] / "metrics.jsonl")
    assert set(points) == {"loss", "norms/00", "norms/01", "eval/held_out/ar/bits_per_byte"}
    assert points["norms/01"] == [(1, 2.0), (2, 4.0), (3, 6.0), (4, 8.0)]
    assert [step for step, value in points["loss"] if not math.isnan(value)] == [1, 3, 4]


def test_a_spike_is_the_largest_of_the_first_over_the_median_after():
    steps = np.arange(1, 9)
    values = np.array([1.0, 6.0, 2.0, 2.0, 4.0, 3.0, 1.0, np.nan])
    assert spike_size(3)(steps, values) == 6.0 / statistics.median([2.0, 4.0, 3.0, 1.0])
    with pytest.raises(UserError, match="the run has 8 values; expected more"):
        spike_size(8)(steps, values)


def test_spikes_stand_out_of_the_window_before_them():
    values = np.array([1.0, 1.1, 0.9, 1.0, 1.6, 1.0, 1.4, 3.0, 1.0, 1.0])
    expected = sum(values[i] > 1.5 * statistics.median(values[i - 4 : i]) for i in range(4, len(values)))
    assert expected == 2
    assert spike_rate(factor=1.5, window=4)(np.arange(10), values) == pytest.approx(100 * expected / 6)
    assert spike_rate(window=4, factor=10)(np.arange(10), values) == 0
    with pytest.raises(UserError, match="more than the window of 20"):
        spike_rate(factor=1.5)(np.arange(10), values)


def test_a_curve_over_branches_goes_on_where_the_branch_begins(directories, tmp_path):
    branch = tmp_path / "branch"
    with MetricsWriter(branch, MetricsSettings(tensorboard=False)) as writer:
        for step, loss in ((3, 2.9), (4, 2.8), (5, 2.7)):
            writer.write(step, {"loss": loss})
    joined = curve("x", key="loss", stage=("train", "branch"), title="")
    steps, values = joined.read(directories | {"branch": branch})
    assert joined.stages == ("train", "branch")
    assert steps.tolist() == [1, 2, 3, 4, 5]
    np.testing.assert_array_equal(values, [5.0, math.nan, 2.9, 2.8, 2.7])
