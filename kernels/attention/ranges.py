"""Which blocks of queries and keys can interact at all, from the segment ids: what lets a kernel skip the others.

A kernel that walks over the keys of a block of queries starts at `first` and stops before `end`. Every pair of a
query and a key that see each other lies in these blocks, whatever the ids are; the blocks between may still hold pairs
that do not, so a kernel masks them, except from `plain_first` to `plain_end`, where every query sees every key.

A block is judged by the smallest and the largest id in it (padding, id 0, apart). Where ids count up along the row, as
packing writes them, the result is exact up to the block; with other ids it is only larger than needed.

Shapes: B batch, T sequence, I blocks of the side that a kernel's program owns, J blocks of the side it walks over.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from kernels.attention.blocks import Blocks


class BlockRanges(NamedTuple):
    """Half-open ranges of blocks, int32 [B, I]: `first <= plain_first <= plain_end <= end`; empty ones are equal."""

    first_BI: Int[Array, "B I"]
    plain_first_BI: Int[Array, "B I"]
    plain_end_BI: Int[Array, "B I"]
    end_BI: Int[Array, "B I"]


def key_ranges(segment_ids_BT: Int[Array, "B T"], blocks: Blocks) -> BlockRanges:
    """For every block of queries, the blocks of keys that it meets."""
    meet_BQK, plain_BQK = _interactions(segment_ids_BT, blocks)
    return _ranges(meet_BQK, plain_BQK)


def query_ranges(segment_ids_BT: Int[Array, "B T"], blocks: Blocks) -> BlockRanges:
    """For every block of keys, the blocks of queries that meet it."""
    meet_BQK, plain_BQK = _interactions(segment_ids_BT, blocks)
    return _ranges(meet_BQK.swapaxes(1, 2), plain_BQK.swapaxes(1, 2))


def _interactions(segment_ids_BT: Array, blocks: Blocks) -> tuple[Array, Array]:
    """Can a query of the block see a key of the other; and does every query see every key. Bool [B, Q, K] in blocks."""
    block_q, block_k = blocks[:2]
    low_BQ1, high_BQ1, same_BQ1 = (a[:, :, None] for a in _id_bounds(segment_ids_BT, block_q))
    low_B1K, high_B1K, same_B1K = (a[:, None, :] for a in _id_bounds(segment_ids_BT, block_k))
    query_Q1 = jnp.arange(low_BQ1.shape[1])[:, None] * block_q  # the first position of each block
    key_1K = jnp.arange(low_B1K.shape[2])[None, :] * block_k
    meet_BQK = (key_1K <= query_Q1 + block_q - 1) & (low_BQ1 <= high_B1K) & (low_B1K <= high_BQ1)
    plain_BQK = (key_1K + block_k - 1 <= query_Q1) & same_BQ1 & same_B1K & (low_BQ1 == low_B1K)
    return meet_BQK, plain_BQK


def _id_bounds(segment_ids_BT: Array, block: int) -> tuple[Array, Array, Array]:
    """Smallest and largest id of each block, and whether all of it is one document. What overhangs T is padding."""
    B, T = segment_ids_BT.shape
    ids_BIt = jnp.pad(segment_ids_BT, ((0, 0), (0, -T % block))).reshape(B, -1, block)
    limits = jnp.iinfo(ids_BIt.dtype)
    low_BI = jnp.min(jnp.where(ids_BIt == 0, limits.max, ids_BIt), axis=-1)  # of padding only: above every other one
    high_BI = jnp.max(jnp.where(ids_BIt == 0, limits.min, ids_BIt), axis=-1)
    same_BI = (low_BI == high_BI) & jnp.all(ids_BIt != 0, axis=-1)
    return low_BI, high_BI, same_BI


def _ranges(meet_BIJ: Bool[Array, "B I J"], plain_BIJ: Bool[Array, "B I J"]) -> BlockRanges:
    j_J = jax.lax.iota(jnp.int32, meet_BIJ.shape[2])
    last = jnp.int32(len(j_J))
    end_BI = jnp.max(jnp.where(meet_BIJ, j_J + 1, 0), axis=-1)
    first_BI = jnp.minimum(jnp.min(jnp.where(meet_BIJ, j_J, last), axis=-1), end_BI)
    # The first run of blocks without a break; where ids count up there is no other.
    plain_first_BI = jnp.minimum(jnp.min(jnp.where(plain_BIJ, j_J, last), axis=-1), end_BI)
    broken_BIJ = ~plain_BIJ & (j_J >= plain_first_BI[:, :, None])
    plain_end_BI = jnp.minimum(jnp.min(jnp.where(broken_BIJ, j_J, last), axis=-1), end_BI)
    return BlockRanges(first_BI, plain_first_BI, plain_end_BI, end_BI)
