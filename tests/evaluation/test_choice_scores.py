"""Scores of choices against scipy, scikit-learn and counts by hand."""

import numpy as np
import pytest
from scipy import stats

from allam_jax.evaluation.choice_scores import Answered, flips, macro_f1, mcnemar, summary, wilson

CHANCE = np.random.default_rng(0)


@pytest.mark.parametrize(("hits", "count"), [(0, 5), (3, 7), (50, 100), (5227, 8711), (12, 12)])
def test_intervals_are_those_of_scipy(hits, count):
    expected = stats.binomtest(hits, count).proportion_ci(0.95, method="wilson")
    assert wilson(hits, count) == pytest.approx((expected.low, expected.high), abs=1e-12)


@pytest.mark.parametrize(("first", "second"), [(5, 1), (0, 0), (3, 3), (20, 8)])
def test_the_paired_test_is_that_of_scipy(first, second):
    a = [True] * first + [False] * second + [True] * 4
    b = [False] * first + [True] * second + [True] * 4
    expected = stats.binomtest(min(first, second), first + second).pvalue if first + second else 1.0
    assert mcnemar(a, b) == pytest.approx(expected)


def test_macro_f1():
    from sklearn.metrics import f1_score

    right, chosen = CHANCE.integers(0, 4, 60).tolist(), CHANCE.integers(0, 4, 60).tolist()
    assert macro_f1(right, chosen) == pytest.approx(f1_score(right, chosen, average="macro"))
    assert macro_f1([0, 0, 1], [0, 0, 0]) == pytest.approx((0.8 + 0) / 2)


def item(name, right, chosen, texts=("x", "y"), **given):
    return Answered(name, right, chosen, texts, by_characters=1.0, by_bytes=0.0, **given)


def test_a_summary_and_flips():
    items = [item("a", 0, 0, fixed=True), item("b", 0, 1, fixed=True), item("c", 1, 0, fixed=True)]
    found = summary(items)
    assert (found["accuracy"], found["chance"], found["majority"]) == pytest.approx((1 / 3, 0.5, 2 / 3))
    assert (found["by_characters"], found["by_bytes"]) == (1, 0)
    assert summary([item("a", 0, 0)])["majority"] is None
    turned = [item("a", 1, 1, ("y", "x")), item("b", 1, 1, ("y", "x")), item("z", 0, 0)]
    assert flips(items, turned)["flipped"] == 0.5  # a: x both times; b: y, then x
