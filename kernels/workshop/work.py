"""What attention on a case computes and moves: counts that speeds and models are made of."""

import numpy as np

from kernels.attention.blocks import Blocks, Pass
from kernels.workshop.cases import Case


def visible_pairs(case: Case) -> int:
    """Pairs of a query and a key that it sees, over all rows, of one head."""
    ids_BT = case.segment_ids_BT()
    rows = (np.unique(row[row != 0], return_counts=True)[1].astype(np.int64) for row in ids_BT)
    return int(sum((lengths * (lengths + 1) // 2).sum() for lengths in rows))


def flops(case: Case, *, backward: bool) -> int:
    """Floating-point operations of the matmuls on visible pairs only: two forward, five backward (FlashAttention's
    count, 2205.14135). Scores that a kernel computes again, or computes and masks away, are not counted.
    """
    matmuls = 5 if backward else 2
    return 2 * matmuls * visible_pairs(case) * case.num_heads * case.head_dim


def touched_tiles(case: Case, blocks: Blocks) -> int:
    """Tiles of a block of queries by a block of keys, of one head and all rows, that hold a visible pair.

    For ids that are runs, as here: exactly those a kernel cannot skip.
    """
    count, (block_q, block_k) = 0, blocks[:2]
    for ids_T in case.segment_ids_BT():
        starts = np.maximum.accumulate(np.where(np.diff(ids_T, prepend=-1) != 0, np.arange(len(ids_T)), 0))
        real = ids_T != 0
        for first in range(0, len(ids_T), block_q):
            last = min(first + block_q, len(ids_T))
            queries = np.flatnonzero(real[first:last]) + first
            if len(queries):
                count += queries[-1] // block_k - starts[queries[0]] // block_k + 1
    return int(count)


def loaded_bytes(case: Case, *, blocks: Blocks, kernel_pass: Pass, bytes_per_element: int = 2) -> int:
    """Bytes of q, k, v, out and their gradients that the blocks of one kernel move, mostly from and to the L2 cache.

    A program keeps its own tile and streams the other side, two tiles of H for every tile of scores: K and V past a
    block of queries (forward, dq), Q and the output's gradient past a block of keys (dkv).
    """
    tiles = touched_tiles(case, blocks) * case.num_heads
    streamed = blocks.block_q if kernel_pass == "dkv" else blocks.block_k
    own = {"forward": 2 * case.num_heads, "dq": 3 * case.num_heads, "dkv": 4 * case.num_kv_heads}[kernel_pass]
    rows = 2 * tiles * streamed + own * case.batch * case.seq_len
    return rows * case.head_dim * bytes_per_element
