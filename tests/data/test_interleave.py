import collections
import math

import pytest

from allam_jax.data.interleave import check_weights, source_of_row
from allam_jax.errors import UserError

WEIGHTS = [
    {"en": 0.55, "ar": 0.45},
    {"en": 0.98, "ar": 0.02},
    {"en": 1, "ar": 1, "code": 1},
    {"a": 0.0001, "b": 3, "c": 2.5, "d": 1e-9},
    {"only": 7.0},
    {"zero": 0, "all": 2, "last": 0},
]


def draw(weights, *, rows, lane=0, seed=0):
    return [source_of_row(row, lane=lane, seed=seed, weights=weights) for row in rows]


@pytest.mark.parametrize("weights", WEIGHTS, ids=str)
@pytest.mark.parametrize("lane", [0, 5])
def test_shares_are_right_to_within_a_few_rows(weights, lane):
    """Independent draws would be off by sqrt(n w (1 - w)): by 50 of 10,000 rows."""
    for seed in (0, 1):
        sources = draw(weights, rows=range(10_000), lane=lane, seed=seed)
        for length in (10, 100, 1_000, 10_000):
            counts = collections.Counter(sources[:length])
            for name, weight in weights.items():
                assert abs(counts[name] - length * weight / sum(weights.values())) < 4, (name, length)


@pytest.mark.parametrize("lanes", [2, 3, 8, 64])
def test_a_step_over_all_lanes_has_the_shares_too(lanes):
    """No step of 64 rows out of one source: over the lanes, counts are closer than those of independent draws."""
    weights = {"en": 0.7, "ar": 0.3}
    errors = []
    for row in range(200):
        count = sum(source_of_row(row, lane=lane, seed=3, weights=weights) == "ar" for lane in range(lanes))
        errors.append(count - 0.3 * lanes)
    assert math.sqrt(sum(error**2 for error in errors) / 200) < 0.8 * math.sqrt(lanes * 0.3 * 0.7)


def test_a_source_of_weight_zero_is_never_drawn():
    sources = draw({"a": 0, "b": 1, "c": 0, "d": 1, "e": 0}, rows=range(5_000))
    assert set(sources) == {"b", "d"}


def test_seeds_and_lanes_differ():
    weights = {"en": 0.5, "ar": 0.5}
    variants = {tuple(draw(weights, rows=range(40), lane=lane, seed=seed)) for lane in (0, 1) for seed in (0, 1)}
    assert len(variants) == 4


def test_far_rows_are_exact():
    """Integer arithmetic: a trillion rows on, the shares still hold."""
    sources = draw({"en": 0.55, "ar": 0.45}, rows=range(10**12, 10**12 + 1_000))
    assert abs(sources.count("en") - 550) < 4


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({}, "no sources"),
        ({"a": 1, "b": -0.1}, "weight of source b is -0.1"),
        ({"a": math.nan}, "weight of source a is nan"),
        ({"a": math.inf}, "weight of source a is inf"),
        ({"a": 0, "b": 0}, "weights of all sources .a, b. are 0"),
    ],
)
def test_bad_weights(weights, message):
    with pytest.raises(UserError, match=message):
        check_weights(weights)
