"""The shapes of real training steps, on one GPU, and the work that attention means for them.

Shared by the benchmark, the tuning of block sizes and the compile-only checks. Rows are packed with documents, as in
training; heads are those of one tensor-parallel shard.
"""

import numpy as np

from kernels.attention.blocks import Blocks, Pass
from kernels.attention.cases import Case

# Documents of a packed row, as shares of it: web pages are mostly short, with a few long ones.
_SHARES = (0.30, 0.05, 0.12, 0.02, 0.20, 0.01, 0.08, 0.15)


def packed(seq_len: int) -> tuple[int, ...]:
    """Lengths of documents that fill all but about a hundredth of a row."""
    return tuple(int(share * 0.99 * seq_len) for share in _SHARES)


REAL_CASES = (
    Case(name="7b_t2048", batch=4, seq_len=2048, num_heads=32, num_kv_heads=32, head_dim=128, documents=packed(2048)),
    Case(name="7b_t4096", batch=2, seq_len=4096, num_heads=32, num_kv_heads=32, head_dim=128, documents=packed(4096)),
    Case(name="7b_t4096_whole", batch=2, seq_len=4096, num_heads=32, num_kv_heads=32, head_dim=128),
    Case(
        name="7b_t4096_dropout",
        batch=2,
        seq_len=4096,
        num_heads=32,
        num_kv_heads=32,
        head_dim=128,
        documents=packed(4096),
        dropout_rate=0.1,
    ),
    Case(
        name="13b_tp2_t4096", batch=2, seq_len=4096, num_heads=20, num_kv_heads=20, head_dim=128, documents=packed(4096)
    ),
    Case(
        name="34b_tp8_t4096", batch=4, seq_len=4096, num_heads=8, num_kv_heads=1, head_dim=128, documents=packed(4096)
    ),
    Case(
        name="70b_tp8_t8192", batch=2, seq_len=8192, num_heads=8, num_kv_heads=1, head_dim=128, documents=packed(8192)
    ),
    Case(name="70b_tp8_t8192_whole", batch=2, seq_len=8192, num_heads=8, num_kv_heads=1, head_dim=128),
    Case(name="8b_t8192", batch=1, seq_len=8192, num_heads=32, num_kv_heads=8, head_dim=128, documents=packed(8192)),
    Case(name="small_h64", batch=4, seq_len=4096, num_heads=12, num_kv_heads=4, head_dim=64, documents=packed(4096)),
    Case(name="small_h64_whole", batch=4, seq_len=4096, num_heads=12, num_kv_heads=4, head_dim=64),
)
"""One row of documents each; `_whole` means one document a row, which kernels without segments can serve too."""


def has_segments(case: Case) -> bool:
    """Whether any row is more than one document that fills it."""
    return bool(case.documents)


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


def touched_tiles(case: Case, *, block_q: int, block_k: int) -> int:
    """Tiles of `block_q` queries by `block_k` keys, of one head and all rows, that hold a visible pair.

    For ids that are runs, as here: exactly those a kernel cannot skip.
    """
    count = 0
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
    tiles = touched_tiles(case, block_q=blocks.block_q, block_k=blocks.block_k) * case.num_heads
    streamed = blocks.block_q if kernel_pass == "dkv" else blocks.block_k
    own = {"forward": 2 * case.num_heads, "dq": 3 * case.num_heads, "dkv": 4 * case.num_kv_heads}[kernel_pass]
    rows = 2 * tiles * streamed + own * case.batch * case.seq_len
    return rows * case.head_dim * bytes_per_element
