"""Block ranges against brute force over every pair of a query and a key."""

import jax
import numpy as np
import pytest

from kernels.attention import ranges as module
from kernels.attention.blocks import Blocks

key_ranges, query_ranges = (jax.jit(f, static_argnums=1) for f in (module.key_ranges, module.query_ranges))

ROWS = {
    "one_document": [[1] * 50, [1] * 50],
    "packed": [[1] * 20 + [2] * 3 + [3] * 27, [1] * 7 + [2] * 33 + [0] * 10],
    "padding_only": [[0] * 50, [0] * 20 + [1] * 30],
    "padding_inside": [[1] * 10 + [0] * 15 + [2] * 25, [1] * 10 + [0] * 15 + [1] * 25],
    "ids_fall": [[5] * 17 + [3] * 16 + [-2] * 17, [9] * 25 + [1] * 25],
    "ids_return": [[1] * 16 + [2] * 16 + [1] * 18, [3, 1, 2, 0, 7] * 10],
    "extreme_ids": [[2**31 - 1] * 25 + [-(2**31)] * 25, [-(2**31)] * 25 + [0] * 25],
}
BLOCKS = [(8, 8), (16, 8), (8, 16), (64, 16)]


def visible_TS(ids_T):
    t = np.arange(len(ids_T))
    return (t[:, None] >= t[None, :]) & (ids_T[:, None] == ids_T[None, :]) & (ids_T != 0)[:, None]


@pytest.mark.parametrize(("block_q", "block_k"), BLOCKS)
@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("side", ["queries_own", "keys_own"])
def test_nothing_visible_is_skipped_and_plain_blocks_are_visible_throughout(name, block_q, block_k, side):
    ids_BT = np.array(ROWS[name], np.int64).astype(np.int32)
    function = key_ranges if side == "queries_own" else query_ranges
    ranges = [np.asarray(a) for a in function(ids_BT, Blocks(block_q, block_k, 4, 2))]
    own, other = (block_q, block_k) if side == "queries_own" else (block_k, block_q)
    for b, ids_T in enumerate(ids_BT):
        visible = visible_TS(ids_T) if side == "queries_own" else visible_TS(ids_T).T
        assert len(ranges[0][b]) == -(-len(ids_T) // own)
        for i in range(len(ranges[0][b])):
            first, plain_first, plain_end, end = (int(a[b, i]) for a in ranges)
            assert 0 <= first <= plain_first <= plain_end <= end <= -(-len(ids_T) // other)
            rows = visible[i * own : (i + 1) * own]
            (seen,) = np.nonzero(rows.any(axis=0))
            assert np.all((seen >= first * other) & (seen < end * other))
            plain = rows[:, plain_first * other : plain_end * other]
            assert plain.all()
            assert plain.size == own * other * (plain_end - plain_first)  # no overhang over the edge of the row


def test_ids_that_count_up_skip_all_that_can_be_skipped():
    ids_BT = np.repeat(np.arange(1, 6), [16, 24, 8, 40, 40])[None].astype(np.int32)
    visible = visible_TS(ids_BT[0])
    first, plain_first, plain_end, end = key_ranges(ids_BT, Blocks(16, 8, 4, 2))
    plain_blocks = 0
    for i in range(8):
        (seen,) = np.nonzero(visible[i * 16 : (i + 1) * 16].any(axis=0))
        assert (int(first[0, i]), int(end[0, i])) == (seen.min() // 8, seen.max() // 8 + 1)
        plain_blocks += int(plain_end[0, i] - plain_first[0, i])
    tiles = visible.reshape(8, 16, 16, 8)
    assert plain_blocks == tiles.all(axis=(1, 3)).sum() > 0


def test_a_row_of_padding_gives_empty_ranges():
    for function in (key_ranges, query_ranges):
        ranges = function(np.zeros((1, 40), np.int32), Blocks(16, 16, 4, 2))
        np.testing.assert_array_equal(ranges.first_BI, ranges.end_BI)
