"""Ratings and agreement against evalica, a direct maximisation, published tables, and simulation."""

import functools
import math

import evalica
import numpy as np
import pytest
from scipy.optimize import minimize

from allam_jax.evaluation.ratings import (
    Battle,
    bradley_terry,
    elo,
    fleiss_kappa,
    interval,
    krippendorff_alpha,
    win_rates,
)

CHANCE = np.random.default_rng(0)
MODELS = ("allam", "base", "other", "fourth")


def battles(count, strengths=(0.8, 0.0, 0.3, -0.4), outcomes=("a", "b", "tie", "both_bad")):
    found = []
    for _ in range(count):
        a, b = CHANCE.choice(4, 2, replace=False)
        if len(outcomes) == 4 and CHANCE.random() < 0.3:
            outcome = outcomes[CHANCE.integers(2, 4)]
        else:
            outcome = "a" if CHANCE.random() < 1 / (1 + math.exp(strengths[b] - strengths[a])) else "b"
        found.append(Battle(MODELS[a], MODELS[b], outcome))
    return found


SOME = battles(150)


def columns(some):
    winners = {"a": evalica.Winner.X, "b": evalica.Winner.Y}
    return (
        [battle.model_a for battle in some],
        [battle.model_b for battle in some],
        [winners.get(battle.outcome, evalica.Winner.Draw) for battle in some],
    )


def test_elo():
    found = elo(SOME, k_factor=4, initial=1000, both_bad="default")
    expected = evalica.elo(*columns(SOME), initial=1000, k=4).scores
    assert found == pytest.approx(expected.to_dict())
    # One battle between equals that both lose: each was expected half a point.
    assert elo([Battle("x", "y", "both_bad")], k_factor=4, initial=1000, both_bad="custom") == {"x": 998, "y": 998}
    assert elo([Battle("x", "y", "both_bad")], k_factor=4, initial=1000, both_bad="default") == {"x": 1000, "y": 1000}
    # By hand: after a win x has 1002 and y 998, so that x is expected 1 / (1 + 10 ** (-4 / 400)) points.
    found = elo([Battle("x", "y", "a"), Battle("y", "x", "a")], k_factor=4, initial=1000, both_bad="custom")
    assert found["x"] == pytest.approx(1002 - 4 / (1 + 10 ** (-4 / 400)))


ONE_WINS_ALWAYS = [
    *[Battle("z", other, "a") for other in "xy" for _ in range(5)],
    *[Battle("x", "y", "a")] * 6,
    *[Battle("y", "x", "a")] * 3,
]
CHAIN = [Battle("a", "b", "a"), Battle("c", "b", "b"), Battle("d", "e", "tie")]  # and two that met nobody else


@pytest.mark.parametrize("some", [SOME, ONE_WINS_ALWAYS, CHAIN, [Battle("a", "b", "a")] * 10])
def test_bradley_terry(some):
    """With half a win and half a loss of each against an average opponent, models that never lose are rated too."""
    found = bradley_terry(some, initial=1000)
    points = {"a": 1.0, "b": 0.0}
    models = list(found)

    def loss(strengths):
        of = dict(zip(models, strengths, strict=True))
        total = 0.5 * sum(np.logaddexp(0, value) + np.logaddexp(0, -value) for value in strengths)
        for battle in some:
            ahead = of[battle.model_a] - of[battle.model_b]
            share = points.get(battle.outcome, 0.5)
            total += share * np.logaddexp(0, -ahead) + (1 - share) * np.logaddexp(0, ahead)
        return total

    best = minimize(loss, np.zeros(len(models)), tol=1e-12).x
    expected = 1000 + (best - best.mean()) * 400 / math.log(10)
    assert [found[model] for model in models] == pytest.approx(expected, abs=0.05)


def test_who_always_wins_is_rated_and_has_an_interval():
    found = bradley_terry(ONE_WINS_ALWAYS, initial=1000)
    assert found["z"] > found["x"] + 100 > found["y"] + 150
    # By hand: strengths t and -t, with 10.5 wins of the one and half a loss in sum at t.
    ten = [Battle("a", "b", "a")] * 10
    t = (found := bradley_terry(ten, initial=0))["a"] * math.log(10) / 400
    expected = 10 / (1 + math.exp(2 * t)) + 0.5 - 1 / (1 + math.exp(-t))
    assert expected == pytest.approx(0, abs=1e-6)
    chance = np.random.default_rng(0)
    rate = functools.partial(bradley_terry, initial=0, chance=chance)
    spans = interval(ten, rate, samples=200, seed=0)
    assert spans["a"][0] + 50 < found["a"] < spans["a"][1] - 50
    assert spans["b"][0] + 50 < found["b"] < spans["b"][1] - 50


@pytest.mark.parametrize(
    ("rate", "truth"),
    [
        (functools.partial(bradley_terry, initial=0), 400 / math.log(10)),
        (functools.partial(elo, k_factor=4, initial=1000, both_bad="default"), None),
    ],
)
def test_intervals_cover(rate, truth):
    """The truth lies within the 95 % interval of the difference of two models in about 95 % of simulations.

    For Elo, which still moves after so many votes, the truth is the mean of its ratings over many elections.
    """
    strengths, hits, runs = (0.5, -0.5, 0.0, 0.0), 0, 60

    def difference(some):
        return {"d": (found := rate(some))["allam"] - found["base"]}

    if truth is None:
        truth = np.mean([difference(battles(150, strengths, ("a", "b")))["d"] for _ in range(1000)])
    for _ in range(runs):
        some = battles(150, strengths, ("a", "b"))
        low, high = interval(some, difference, samples=60, seed=0)["d"]
        hits += low <= truth <= high
    assert 0.85 <= hits / runs <= 1


def test_win_rates():
    some = [Battle("x", "y", "a"), Battle("y", "x", "tie"), Battle("x", "y", "both_bad"), Battle("x", "z", "b")]
    found = win_rates(some, both_bad="custom")
    assert found["x"] == {"y": 0.5, "z": 0}
    assert found["y"] == {"x": pytest.approx(0.5 / 3), "z": None}
    assert win_rates(some, both_bad="default")["y"]["x"] == pytest.approx(1 / 3)


def test_agreement():
    # Two raters, two choices, counted by hand: they agree on 3 of 4; a has 5 of 8 votes.
    votes = [("a", "a"), ("a", "a"), ("b", "b"), ("a", "b")]
    chance = (5 / 8) ** 2 + (3 / 8) ** 2
    assert fleiss_kappa(votes) == pytest.approx((0.75 - chance) / (1 - chance))
    assert fleiss_kappa([("a", "a", "a")]) is None
    # Coincidences of the same votes: n = 8, disagreements 2 of 8 pairs, expected 2 * 5 * 3 / (8 * 7).
    named = [dict(zip("xy", pair, strict=True)) for pair in votes]
    assert krippendorff_alpha(named) == pytest.approx(1 - (2 / 8) / (2 * 5 * 3 / (8 * 7)))
    assert krippendorff_alpha([*named, {"z": "tie"}]) == pytest.approx(1 - (2 / 8) / (2 * 5 * 3 / (8 * 7)))
    assert krippendorff_alpha([{"x": "a", "y": "a"}]) is None
