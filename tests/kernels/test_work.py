"""The work that is counted for a case, against counting every pair."""

import numpy as np
import pytest

from kernels.attention.blocks import Blocks
from kernels.workshop import work
from kernels.workshop.cases import REAL_CASES, Case

CASES = (
    Case(name="whole", batch=1, seq_len=96, num_heads=2, num_kv_heads=1, head_dim=16),
    Case(name="packed", batch=3, seq_len=100, num_heads=4, num_kv_heads=2, head_dim=8, documents=(31, 7, 50)),
    Case(
        name="in_front",
        batch=2,
        seq_len=90,
        num_heads=1,
        num_kv_heads=1,
        head_dim=8,
        documents=(40, 20),
        padded_in_front=True,
    ),
)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_visible_pairs_are_those_of_the_mask(case):
    visible = np.asarray(case.request().visible_BtS())
    assert work.visible_pairs(case) == visible.sum()
    pairs = visible.sum() * case.num_heads
    assert work.flops(case, backward=False) == pairs * case.head_dim * 2 * 2
    assert work.flops(case, backward=True) == pairs * case.head_dim * 2 * 5


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize(("block_q", "block_k"), [(16, 16), (32, 16), (16, 32), (64, 32)])
def test_touched_tiles_are_those_with_a_visible_pair(case, block_q, block_k):
    visible = np.asarray(case.request().visible_BtS())
    T = case.seq_len
    padded = np.pad(visible, ((0, 0), (0, -T % block_q), (0, -T % block_k)))
    tiles = padded.reshape(case.batch, -(-T // block_q), block_q, -(-T // block_k), block_k).any(axis=(2, 4))
    # What lies between the first and the last tile of a row of tiles is walked over, whether seen or not.
    walked = sum(np.ptp(np.flatnonzero(row)) + 1 for row in tiles.reshape(-1, tiles.shape[2]) if row.any())
    assert work.touched_tiles(case, Blocks(block_q, block_k, 4, 2)) == walked


def test_loaded_bytes_of_one_block_are_its_operands():
    case = Case(name="one", batch=1, seq_len=16, num_heads=4, num_kv_heads=2, head_dim=8)
    blocks = Blocks(16, 16, 4, 2)
    tile = 16 * 8 * 2
    # q, k, v, out; q, k, v, d_out, d_q; and per query head q, d_out, per key head k, v, d_k, d_v.
    assert work.loaded_bytes(case, blocks=blocks, kernel_pass="forward") == 4 * 4 * tile
    assert work.loaded_bytes(case, blocks=blocks, kernel_pass="dq") == 4 * 5 * tile
    assert work.loaded_bytes(case, blocks=blocks, kernel_pass="dkv") == (4 * 2 + 2 * 4) * tile


def test_real_cases_have_rows_that_their_documents_fit_in():
    names = [case.name for case in REAL_CASES]
    assert len(set(names)) == len(names)
    for case in REAL_CASES:
        assert sum(case.documents) <= case.seq_len
        assert case.name.endswith("_whole") == (not case.documents)
