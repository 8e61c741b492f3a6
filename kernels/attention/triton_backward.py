"""Backward kernels of the `triton` backend: FlashAttention-2 (Dao 2023, 2307.08691, algorithm 2), in two passes.

One pass owns blocks of queries and makes dQ, the other owns blocks of keys and makes dK and dV. A single pass would
save two of seven matmuls, but has to add up dQ with atomics: in float32, in memory, and in an order that changes from
run to run, where this project promises the same bits. It also holds one accumulator more, where two fill the registers.

The key pass works on transposed tiles (keys down, queries across): probabilities and their gradients are then left
operands of its matmuls, which tensor cores take from registers as the matmuls before have left them.

The probabilities are made again from log Z. `delta`, the sum of d_out * out less the cotangent of log Z, is made by
the query pass, which holds d_out anyway, and handed to the key pass. The scale of the scores, and 1 / (1 - rate) of
dropout, are applied to the accumulators at the end. Names of shapes are in `triton_tiles`.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jaxtyping import Array

from kernels.attention import dropout
from kernels.attention.contract import MASKED
from kernels.attention.ranges import BlockRanges, key_ranges, query_ranges
from kernels.attention.triton_tiles import LOG2_E, Call, exp2, horizon, load, matmul, over_blocks, store

# Programs that fill the largest GPU served (H100: 132 multiprocessors) twice over.
ENOUGH_PROGRAMS = 264


def d_queries(
    q_BTNH: Array,
    k_BTKH: Array,
    v_BTKH: Array,
    segment_ids_BT: Array,
    streams_BN: Array | None,
    out_BTNH: Array,
    log_z_BNT: Array,
    d_out_BTNH: Array,
    d_log_z_BNT: Array,
    call: Call,
) -> tuple[Array, Array]:
    """Returns d_q_BTNH, and delta_BNT (float32, times 1 - dropout rate) for `d_keys`."""
    block_q, all_keys = call.blocks.block_q, call.key_blocks * call.blocks.block_k
    at_once = call.heads_at_once(2 * call.T * call.H * k_BTKH.dtype.itemsize)
    sections = call.K // at_once

    def at(choose):
        """An index map from the row, query head and block of queries of a program; see `triton_forward`."""

        def index(x, y, z):
            n = lax.rem(z, sections) * at_once * call.group + x
            return choose(lax.div(z, sections), n, call.query_blocks - 1 - y)

        return index

    scalar = pl.BlockSpec((None, None), at(lambda b, n, i: (b, i)))
    queries = pl.BlockSpec((None, block_q, None, call.h), at(lambda b, n, i: (b, i, n, 0)))
    keys = pl.BlockSpec((None, all_keys, None, call.h), at(lambda b, n, i: (b, 0, lax.div(n, call.group), 0)))
    vector = pl.BlockSpec((None, None, block_q), at(lambda b, n, i: (b, n, i)))
    return call.pallas_call(
        _d_queries_kernel,
        grid=(at_once * call.group, call.query_blocks, call.B * sections),
        in_specs=[
            BlockRanges._make([scalar] * 4),
            pl.BlockSpec((None, block_q), at(lambda b, n, i: (b, i))),
            pl.BlockSpec((None, all_keys), at(lambda b, n, i: (b, 0))),
            queries,
            keys,
            keys,
            None if streams_BN is None else pl.BlockSpec((None, None), at(lambda b, n, i: (b, n))),
            queries,
            vector,
            queries,
            vector,
        ],
        out_specs=[queries, vector],
        out_shape=[
            jax.ShapeDtypeStruct(q_BTNH.shape, q_BTNH.dtype),
            jax.ShapeDtypeStruct(log_z_BNT.shape, jnp.float32),
        ],
        name="attention_d_queries",
    )(
        key_ranges(segment_ids_BT, block_q=block_q, block_k=call.blocks.block_k),
        segment_ids_BT,
        segment_ids_BT,
        q_BTNH,
        k_BTKH,
        v_BTKH,
        streams_BN,
        out_BTNH,
        log_z_BNT,
        d_out_BTNH,
        d_log_z_BNT,
    )


def _d_queries_kernel(
    ranges,
    query_ids_ref,
    key_ids_ref,
    q_ref,
    k_ref,
    v_ref,
    stream_ref,
    out_ref,
    log_z_ref,
    d_out_ref,
    d_log_z_ref,
    d_q_ref,
    delta_ref,
    *,
    call: Call,
):
    block_q, block_k = call.blocks.block_q, call.blocks.block_k
    to_exponent, keep_rate = call.scale * LOG2_E, 1.0 - call.dropout_rate
    t = (call.query_blocks - 1 - pl.program_id(1)) * block_q + jnp.arange(block_q)
    q_th, d_out_th = load(q_ref, t, call), load(d_out_ref, t, call)
    delta_t = jnp.sum(d_out_th.astype(jnp.float32) * load(out_ref, t, call).astype(jnp.float32), axis=1)
    delta_t = (delta_t - load(d_log_z_ref, t, call)) * keep_rate
    store(delta_ref, delta_t, t, call)
    exponent_z_t = load(log_z_ref, t, call) * LOG2_E
    ids_t = load(query_ids_ref, t, call)
    horizon_t = horizon(t, ids_t)
    stream = None if stream_ref is None else stream_ref[...]

    def step(j, _, d_q_th, *, masked: bool):
        block = pl.ds(j * block_k, block_k)
        s = j * block_k + jnp.arange(block_k)
        k_sh = load(k_ref.at[block, :], s, call, inside=not masked)
        scores_ts = matmul(q_th, k_sh, transpose_b=True)
        if masked:
            ids_s = load(key_ids_ref.at[block], s, call)
            visible_ts = (horizon_t[:, None] >= s[None, :]) & (ids_t[:, None] == ids_s[None, :])
            scores_ts = jnp.where(visible_ts, scores_ts, MASKED)
        probs_ts = exp2(scores_ts * to_exponent - exponent_z_t[:, None], call)
        d_probs_ts = matmul(d_out_th, load(v_ref.at[block, :], s, call, inside=not masked), transpose_b=True)
        if stream is not None:
            kept_ts = dropout.keep(stream, t[:, None], s[None, :], rate=call.dropout_rate)
            d_probs_ts = jnp.where(kept_ts, d_probs_ts, 0.0)
        d_scores_ts = probs_ts * (d_probs_ts - delta_t[:, None])
        return d_q_th + matmul(d_scores_ts.astype(k_sh.dtype), k_sh)

    start = jnp.zeros((block_q, call.h), jnp.float32)
    d_q_th = over_blocks([ref[...] for ref in ranges], step, start)
    store(d_q_ref, d_q_th * (call.scale / keep_rate), t, call)


def d_keys(
    q_BTNH: Array,
    k_BTKH: Array,
    v_BTKH: Array,
    segment_ids_BT: Array,
    streams_BN: Array | None,
    log_z_BNT: Array,
    delta_BNT: Array,
    d_out_BTNH: Array,
    call: Call,
) -> tuple[Array, Array]:
    """Returns d_k_BTKH and d_v_BTKH, summed over the query heads of each group.

    A program sums over the heads of its group. Where that leaves too few programs for the device, the group is split
    into P parts, whose float32 sums are added outside the kernel.
    """
    block_k, all_queries = call.blocks.block_k, call.query_blocks * call.blocks.block_q
    splits = _splits(call)
    heads = call.group // splits
    at_once = call.heads_at_once(2 * call.group * call.T * call.H * q_BTNH.dtype.itemsize)
    sections = call.K // at_once

    def at(choose):
        """An index map from the row, key/value head, part of its group and block of keys of a program."""

        def index(x, y, z):
            k = lax.rem(z, sections) * at_once + lax.div(x, splits)
            return choose(lax.div(z, sections), k, lax.rem(x, splits), y)

        return index

    scalar = pl.BlockSpec((None, None), at(lambda b, k, p, j: (b, j)))
    queries = pl.BlockSpec((None, all_queries, heads, call.h), at(lambda b, k, p, j: (b, 0, k * splits + p, 0)))
    vectors = pl.BlockSpec((None, heads, all_queries), at(lambda b, k, p, j: (b, k * splits + p, 0)))
    keys = pl.BlockSpec((None, block_k, None, call.h), at(lambda b, k, p, j: (b, j, k, 0)))
    sums = pl.BlockSpec((None, None, block_k, None, call.h), at(lambda b, k, p, j: (p, b, j, k, 0)))
    shape = jax.ShapeDtypeStruct((splits, *k_BTKH.shape), k_BTKH.dtype if splits == 1 else jnp.float32)
    d_k_PBTKH, d_v_PBTKH = call.pallas_call(
        _d_keys_kernel,
        grid=(at_once * splits, call.key_blocks, call.B * sections),
        in_specs=[
            BlockRanges._make([scalar] * 4),
            pl.BlockSpec((None, all_queries), at(lambda b, k, p, j: (b, 0))),
            pl.BlockSpec((None, block_k), at(lambda b, k, p, j: (b, j))),
            queries,
            keys,
            keys,
            None if streams_BN is None else pl.BlockSpec((None, heads), at(lambda b, k, p, j: (b, k * splits + p))),
            vectors,
            vectors,
            queries,
        ],
        out_specs=[sums, sums],
        out_shape=[shape, shape],
        name="attention_d_keys",
    )(
        query_ranges(segment_ids_BT, block_q=call.blocks.block_q, block_k=block_k),
        segment_ids_BT,
        segment_ids_BT,
        q_BTNH,
        k_BTKH,
        v_BTKH,
        streams_BN,
        log_z_BNT,
        delta_BNT,
        d_out_BTNH,
    )
    return jnp.sum(d_k_PBTKH, axis=0).astype(k_BTKH.dtype), jnp.sum(d_v_PBTKH, axis=0).astype(v_BTKH.dtype)


def _splits(call: Call) -> int:
    """Parts of a group of query heads; a divisor of the group, 1 where the programs are enough without."""
    programs = call.B * call.K * call.key_blocks
    divisors = [p for p in range(1, call.group + 1) if call.group % p == 0]
    return next((p for p in divisors if p * programs >= ENOUGH_PROGRAMS), call.group)


def _d_keys_kernel(
    ranges,
    query_ids_ref,
    key_ids_ref,
    q_ref,
    k_ref,
    v_ref,
    stream_ref,
    log_z_ref,
    delta_ref,
    d_out_ref,
    d_k_ref,
    d_v_ref,
    *,
    call: Call,
):
    block_q, block_k = call.blocks.block_q, call.blocks.block_k
    to_exponent, keep_rate = call.scale * LOG2_E, 1.0 - call.dropout_rate
    s = pl.program_id(1) * block_k + jnp.arange(block_k)
    k_sh, v_sh = load(k_ref, s, call), load(v_ref, s, call)
    ids_s = load(key_ids_ref, s, call)

    def step(i, g, carry, *, masked: bool):
        d_k_sh, d_v_sh = carry
        block, inside = pl.ds(i * block_q, block_q), not masked
        t = i * block_q + jnp.arange(block_q)
        q_th = load(q_ref.at[block, g, :], t, call, inside=inside)
        scores_st = matmul(k_sh, q_th, transpose_b=True)
        if masked:
            ids_t = load(query_ids_ref.at[block], t, call)
            visible_st = (horizon(t, ids_t)[None, :] >= s[:, None]) & (ids_t[None, :] == ids_s[:, None])
            scores_st = jnp.where(visible_st, scores_st, MASKED)
        exponent_z_t = load(log_z_ref.at[g, block], t, call, inside=inside) * LOG2_E
        probs_st = exp2(scores_st * to_exponent - exponent_z_t[None, :], call)
        d_out_th = load(d_out_ref.at[block, g, :], t, call, inside=inside)
        if stream_ref is None:
            kept_probs_st = probs_st
        else:
            # The mask lives on in the signs of the probabilities: a tile of registers less than keeping it apart.
            kept_st = dropout.keep(stream_ref[g], t[None, :], s[:, None], rate=call.dropout_rate)
            probs_st = jnp.where(kept_st, probs_st, -probs_st)
            kept_probs_st = jnp.maximum(probs_st, 0.0)
        d_v_sh = d_v_sh + matmul(kept_probs_st.astype(d_out_th.dtype), d_out_th)
        d_probs_st = matmul(v_sh, d_out_th, transpose_b=True)
        if stream_ref is not None:
            d_probs_st = jnp.where(probs_st > 0.0, d_probs_st, 0.0)
            probs_st = jnp.abs(probs_st)
        d_scores_st = probs_st * (d_probs_st - load(delta_ref.at[g, block], t, call, inside=inside)[None, :])
        return d_k_sh + matmul(d_scores_st.astype(q_th.dtype), q_th), d_v_sh

    zeros = jnp.zeros((block_k, call.h), jnp.float32)
    heads = log_z_ref.shape[0]
    d_k_sh, d_v_sh = over_blocks([ref[...] for ref in ranges], step, (zeros, zeros), heads=heads)
    store(d_k_ref, d_k_sh * (call.scale / keep_rate), s, call)
    store(d_v_ref, d_v_sh * (1.0 / keep_rate), s, call)
