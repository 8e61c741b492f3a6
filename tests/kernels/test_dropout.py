import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels.attention.dropout import Dropout, keep
from tests.kernels.attention_truth import kept_by_hand

B, N, T = 4, 6, 384


@functools.cache
def masks_BNTS(seed: int = 0, rate: float = 0.1) -> np.ndarray:
    streams = Dropout.from_key(jax.random.key(seed), rate=rate).streams_BN(batch=B, num_heads=N)[:, :, None, None]
    positions = jnp.arange(T, dtype=jnp.int32)
    return np.asarray(keep(streams, positions[:, None], positions[None, :], rate=rate))


def deviation(sample: np.ndarray, expected: float) -> float:
    """Of a mean of zeros and ones from its expectation, in standard errors."""
    return abs(sample.mean() - expected) / np.sqrt(expected * (1 - expected) / sample.size)


@pytest.mark.parametrize("rate", [0.01, 0.1, 0.5, 0.9])
def test_share_that_is_kept(rate):
    assert deviation(masks_BNTS(rate=rate), 1 - rate) < 4


@pytest.mark.parametrize("axis", range(4), ids=["rows", "heads", "queries", "keys"])
def test_even_shares_along_every_axis(axis):
    mask = np.moveaxis(masks_BNTS(), axis, 0).reshape(masks_BNTS().shape[axis], -1)
    z = (mask.mean(axis=1) - 0.9) / np.sqrt(0.9 * 0.1 / mask.shape[1])
    assert np.max(np.abs(z)) < 4.5
    # Neither spread wider nor narrower than chance: the sum of squares is chi-squared with one degree each.
    assert abs((z**2).sum() - len(z)) < 5 * np.sqrt(2 * len(z))


@pytest.mark.parametrize("shift", [(1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1), (0, 0, 1, 1), (0, 0, 1, -1)])
def test_neighbours_are_independent(shift):
    dropped = ~masks_BNTS(rate=0.5)
    moved = np.roll(dropped, shift, axis=(0, 1, 2, 3))
    assert deviation(dropped ^ moved, 0.5) < 4


def test_corners_of_rectangles_are_independent():
    # A hash of a sum or an xor of a query's and a key's number alone would show here.
    dropped = ~masks_BNTS(rate=0.5)[0, 0]
    rng = np.random.default_rng(0)
    t, s = rng.integers(0, T, (2, 2, 200_000))
    real = (t[0] != t[1]) & (s[0] != s[1])
    parity = dropped[t[0], s[0]] ^ dropped[t[0], s[1]] ^ dropped[t[1], s[0]] ^ dropped[t[1], s[1]]
    assert deviation(parity[real], 0.5) < 4


def test_other_seeds_give_other_masks():
    dropped, other = ~masks_BNTS(rate=0.5), ~masks_BNTS(seed=1, rate=0.5)
    assert deviation(dropped ^ other, 0.5) < 4


def test_equals_the_formula_in_integers():
    dropout = Dropout.from_key(jax.random.key(7), rate=0.3)
    streams = dropout.streams_BN(batch=B, num_heads=N)
    s = np.arange(200)
    for b, n, t in ((0, 0, 0), (3, 5, 199), (1, 2, 77)):
        np.testing.assert_array_equal(
            keep(streams[b, n], jnp.int32(t), jnp.asarray(s, jnp.int32), rate=0.3),
            kept_by_hand(dropout, b, n, t, s),
        )


def test_masks_of_a_shard_are_a_part_of_the_whole():
    dropout = Dropout.from_key(jax.random.key(3), rate=0.1)
    whole = dropout.streams_BN(batch=4, num_heads=6)
    part = dropout.of_shard(rows=2, heads=3).streams_BN(batch=2, num_heads=3)
    np.testing.assert_array_equal(part, whole[2:, 3:])


def test_nothing_is_dropped_at_rate_zero():
    assert masks_BNTS(rate=0.0).all()
