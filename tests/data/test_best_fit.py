"""Best-fit packing against a plain search, and what every epoch must have."""

import numpy as np
import pytest

from allam_jax.data.best_fit import BestFit


def plain(lengths, capacity):
    """Rows of lengths: each item, longest first, in the fullest row that has room."""
    rows = []
    for length in sorted(lengths, reverse=True):
        fitting = [row for row in rows if sum(row) + length <= capacity]
        if fitting:
            max(fitting, key=sum).append(length)
        else:
            rows.append([length])
    return rows


@pytest.mark.parametrize("seed", range(5))
def test_the_rows_are_those_of_a_plain_search(seed):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 40, size=200)
    fit = BestFit(lengths, capacity=64)
    found = fit.rows(np.random.default_rng(seed))
    assert sorted(found.items.tolist()) == list(range(200))
    # Of rows with equal room any may be taken, so that not their contents but how full they are is the same.
    filled = sorted(int(lengths[found[row]].sum()) for row in range(len(found)))
    assert filled == sorted(sum(row) for row in plain(lengths.tolist(), 64))
    assert fit.count == len(found) == len(plain(lengths.tolist(), 64))
    assert fit.most_items == max(len(found[row]) for row in range(len(found)))


def test_epochs_have_other_neighbours_and_as_many_rows():
    lengths = np.repeat([10, 7, 20], 30)
    fit = BestFit(lengths, capacity=32)
    one, other, again = (fit.rows(np.random.default_rng(seed)) for seed in (0, 1, 0))
    assert len(one) == len(other) == fit.count
    assert one.items.tolist() == again.items.tolist() != other.items.tolist()
    for rows in (one, other):
        assert sorted(rows.items.tolist()) == list(range(90))
        assert max(lengths[rows[row]].sum() for row in range(len(rows))) <= 32


def test_without_packing_every_item_has_a_row():
    fit = BestFit(np.array([3, 1, 2]), capacity=8, packed=False)
    rows = fit.rows(np.random.default_rng(0))
    assert [len(rows[row]) for row in range(3)] == [1, 1, 1]
    assert (fit.count, fit.most_items) == (3, 1)


def test_an_item_that_fills_a_row_leaves_room_for_none():
    assert BestFit(np.array([8, 8, 8]), capacity=8).count == 3
