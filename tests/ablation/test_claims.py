"""Verdicts, against tables of Student's t and by simulation."""

import math

import numpy as np
import pytest

from allam_jax.ablation.claims import Claim, confidence_interval, judge, overall, smallest_effect
from allam_jax.ablation.outcomes import Outcome
from allam_jax.errors import UserError


def outcomes(**arms):
    return [
        Outcome(run=f"{arm}-{seed}", labels={"arm": arm, "seed": seed}, values={"loss": value}, curves={}, seconds=0)
        for arm, values in arms.items()
        for seed, value in enumerate(values)
    ]


def claim(expect="lower", *, margin=0.0, than="b"):
    rivals = {"arm": than} if isinstance(than, str) else tuple({"arm": arm} for arm in than)
    return Claim(text="a vs b", measure="loss", of={"arm": "a"}, than=rivals, expect=expect, margin=margin)


# Two-sided 95 % points of Student's t, from printed tables.
@pytest.mark.parametrize(("count", "point"), [(2, 12.706), (3, 4.303), (5, 2.776), (11, 2.228)])
def test_the_interval_is_students(count, point):
    values = np.arange(count, dtype=float) ** 2
    low, high = confidence_interval(values)
    deviation = math.sqrt(sum((v - sum(values) / count) ** 2 for v in values) / (count - 1))
    np.testing.assert_allclose((low + high) / 2, sum(values) / count)
    np.testing.assert_allclose((high - low) / 2, point * deviation / math.sqrt(count), rtol=2e-4)


@pytest.mark.parametrize(
    ("expect", "a", "outcome"),
    [
        ("lower", (0.9, 1.9, 2.9), "holds"),
        ("lower", (1.1, 2.1, 3.11), "does not hold"),
        ("lower", (0.9, 2.1, 2.9), "inconclusive"),
        ("higher", (1.1, 2.1, 3.11), "holds"),
        ("higher", (0.9, 1.9, 2.91), "does not hold"),
        ("equal", (1.01, 2.01, 3.01), "holds"),
        ("equal", (1.5, 2.5, 3.5), "does not hold"),
        ("equal", (1.0, 2.2, 2.9), "inconclusive"),
    ],
)
def test_verdicts(expect, a, outcome):
    # Seeds differ by far more than arms: only the pairing makes the difference visible.
    verdict = judge(claim(expect, margin=0.05 if expect == "equal" else 0.0), outcomes(a=a, b=(1.0, 2.0, 3.0)))
    assert verdict.outcome == outcome
    differences = [x - y for x, y in zip(a, (1.0, 2.0, 3.0), strict=True)]
    np.testing.assert_allclose(verdict.effect, sum(differences) / 3)
    np.testing.assert_allclose(verdict.spread, np.std(differences, ddof=1))


def test_a_difference_below_the_margin_does_not_count():
    runs = outcomes(a=(0.99, 1.99, 2.99), b=(1.0, 2.0, 3.0))
    assert judge(claim(), runs).outcome == "holds"
    assert judge(claim(margin=0.1), runs).outcome == "does not hold"


def test_against_several_the_one_that_decides_is_named():
    runs = outcomes(a=(1.0, 2.0, 3.0), b=(1.2, 2.2, 3.2), c=(1.1, 2.1, 3.1), d=(0.9, 1.9, 2.9))
    verdict = judge(claim(than=("b", "c")), runs)
    assert (verdict.outcome, verdict.than) == ("holds", {"arm": "c"})
    verdict = judge(claim(than=("b", "c", "d")), runs)
    assert (verdict.outcome, verdict.than) == ("does not hold", {"arm": "d"})
    assert "against d" in verdict.line(unit="nats")


def test_one_seed_is_no_evidence():
    verdict = judge(claim(), outcomes(a=(1.0,), b=(2.0, 3.0)))
    assert (verdict.outcome, verdict.seeds) == ("inconclusive", 1)
    assert "at least 2" in verdict.line(unit="")


def test_pairs_are_those_of_one_seed():
    runs = outcomes(a=(1.0, 2.0, 3.0), b=(2.0, 3.0, 4.0))
    verdict = judge(claim(), [run for run in runs[::-1] if run.run != "a-0"])
    assert (verdict.seeds, verdict.effect) == (2, -1.0)


def test_with_no_effect_five_percent_are_judged_wrongly():
    rng = np.random.default_rng(0)
    trials = [judge(claim(), outcomes(a=rng.normal(size=3), b=rng.normal(size=3))).outcome for _ in range(2000)]
    for outcome in ("holds", "does not hold"):  # 2.5 % each; three standard deviations are 1.05 %
        assert abs(trials.count(outcome) / 2000 - 0.025) < 0.0105


@pytest.mark.parametrize("seeds", [2, 3, 6])
def test_the_smallest_effect_is_shown_by_four_of_five_experiments(seeds):
    rng = np.random.default_rng(0)
    effect = smallest_effect(0.5, seeds=seeds)
    trials = rng.normal(effect, 0.5, (20_000, seeds))
    # Two-sided 95 % points of Student's t, from printed tables.
    half = {2: 12.706, 3: 4.303, 6: 2.571}[seeds] * trials.std(axis=1, ddof=1) / math.sqrt(seeds)
    assert abs(np.mean(trials.mean(axis=1) > half) - 0.8) < 0.01
    verdict = judge(claim(margin=0.25), outcomes(a=(0.0, 0.5, 1.0), b=(0.0, 0.0, 0.0)))
    np.testing.assert_allclose(verdict.smallest, 0.25 + smallest_effect(0.5, seeds=3))
    assert f"show: {verdict.smallest:.2g})" in verdict.line(unit="nats")


def test_all_claims_together_are_as_the_worst():
    good = judge(claim(), outcomes(a=(0.9, 1.9, 2.9), b=(1.0, 2.0, 3.0)))
    unclear = judge(claim(), outcomes(a=(0.9,), b=(1.0,)))
    bad = judge(claim("higher"), outcomes(a=(0.9, 1.9, 2.9), b=(1.0, 2.0, 3.0)))
    assert overall([good, good]) == "holds"
    assert overall([good, unclear]) == "inconclusive"
    assert overall([good, unclear, bad]) == "does not hold"


def test_a_selection_of_two_arms_is_told():
    both = Claim(text="x", measure="loss", of={}, than={"arm": "a"})
    with pytest.raises(UserError, match="matches 2 arms"):
        both.check([{"arm": "a", "seed": 0}, {"arm": "b", "seed": 0}, {"arm": "b", "seed": 1}])


@pytest.mark.parametrize(
    ("values", "expect", "margin", "outcome"),
    [
        ((1.2, 1.3, 1.25), "higher", 0.0, "holds"),
        ((1.2, 1.3, 1.25), "lower", 0.0, "does not hold"),
        ((0.99, 1.01, 1.0), "equal", 0.05, "holds"),
        ((1.0, 1.0, 1.0), "equal", 0.0, "holds"),
        ((0.7, 1.3, 1.1), "higher", 0.0, "inconclusive"),
    ],
)
def test_a_claim_against_a_number(values, expect, margin, outcome):
    than_one = Claim(text="a vs 1", measure="loss", of={"arm": "a"}, than=1.0, expect=expect, margin=margin)
    than_one.check([{"arm": "a", "seed": seed} for seed in range(3)])
    assert than_one.axis_names == ("arm",)
    verdict = judge(than_one, outcomes(a=values))
    assert (verdict.outcome, verdict.seeds) == (outcome, 3)
    np.testing.assert_allclose(verdict.effect, sum(values) / 3 - 1)
    # The same as against an arm that is 1 with every seed.
    as_arm = judge(claim(expect, margin=margin), outcomes(a=values, b=(1.0, 1.0, 1.0)))
    assert (verdict.outcome, verdict.interval) == (as_arm.outcome, as_arm.interval)
    assert ", against 1; 95 % interval" in verdict.line(unit="nats/token")
