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
from kernels.attention import triton_tiles as tiles
from kernels.attention.contract import MASKED, AttentionOutput
from kernels.attention.passes import LOG2_E, Call, Inputs
from kernels.attention.ranges import BlockRanges, query_ranges
from kernels.attention.triton_tiles import Operands, exp2, horizon, load, matmul, store

# Programs that fill the largest GPU served (H100: 132 multiprocessors) twice over.
ENOUGH_PROGRAMS = 264


def d_queries(inputs: Inputs, output: AttentionOutput, cotangents: AttentionOutput, call: Call) -> tuple[Array, Array]:
    """Returns d_q_BTNH, and delta_BNT (float32, times 1 - dropout rate) for `d_keys`."""
    grid, specs, operands, vector = tiles.over_queries(inputs, call)
    return tiles.pallas_call(
        _d_queries_kernel,
        call,
        grid=grid,
        in_specs=[specs, specs.q, vector, specs.q, vector],
        out_specs=[specs.q, vector],
        out_shape=[jax.ShapeDtypeStruct(a.shape, a.dtype) for a in output],
        name="attention_dq",
    )(operands, *output, *cotangents)


def _d_queries_kernel(refs: Operands, out_ref, log_z_ref, d_out_ref, d_log_z_ref, d_q_ref, delta_ref, *, call: Call):
    block_k, to_exponent, keep_rate = call.blocks.block_k, call.log2_scale, call.keep_rate
    t = tiles.query_positions(call)
    q_th, d_out_th = load(refs.q, t, call), load(d_out_ref, t, call)
    delta_t = jnp.sum(d_out_th.astype(jnp.float32) * load(out_ref, t, call).astype(jnp.float32), axis=1)
    delta_t = (delta_t - load(d_log_z_ref, t, call)) * keep_rate
    store(delta_ref, delta_t, t, call)
    exponent_z_t = load(log_z_ref, t, call) * LOG2_E
    ids_t = load(refs.query_ids, t, call)
    horizon_t = horizon(t, ids_t)
    stream = None if refs.streams is None else refs.streams[...]

    def step(j, _, d_q_th, *, masked: bool):
        block = pl.ds(j * block_k, block_k)
        s = j * block_k + jnp.arange(block_k)
        k_sh = load(refs.k.at[block, :], s, call, inside=not masked)
        scores_ts = matmul(q_th, k_sh, transpose_b=True)
        if masked:
            ids_s = load(refs.key_ids.at[block], s, call)
            visible_ts = (horizon_t[:, None] >= s[None, :]) & (ids_t[:, None] == ids_s[None, :])
            scores_ts = jnp.where(visible_ts, scores_ts, MASKED)
        probs_ts = exp2(scores_ts * to_exponent - exponent_z_t[:, None], call)
        d_probs_ts = matmul(d_out_th, load(refs.v.at[block, :], s, call, inside=not masked), transpose_b=True)
        if stream is not None:
            kept_ts = dropout.keep(stream, t[:, None], s[None, :], rate=call.dropout_rate)
            d_probs_ts = jnp.where(kept_ts, d_probs_ts, 0.0)
        d_scores_ts = probs_ts * (d_probs_ts - delta_t[:, None])
        return d_q_th + matmul(d_scores_ts.astype(k_sh.dtype), k_sh)

    start = jnp.zeros(q_th.shape, jnp.float32)
    d_q_th = tiles.over_blocks([ref[...] for ref in refs.ranges], step, start)
    store(d_q_ref, d_q_th * (call.scale / keep_rate), t, call)


def d_keys(inputs: Inputs, log_z_BNT: Array, delta_BNT: Array, d_out_BTNH: Array, call: Call) -> tuple[Array, Array]:
    """Returns d_k_BTKH and d_v_BTKH, summed over the query heads of each group.

    A program sums over the heads of its group. Where that leaves too few programs for the device, the group is split
    into P parts, whose float32 sums are added outside the kernel.
    """
    q_BTNH, k_BTKH, v_BTKH, segment_ids_BT, streams_BN = inputs
    block_k, all_queries = call.blocks.block_k, call.query_blocks * call.blocks.block_q
    splits = _splits(call)
    heads = call.group // splits
    h = tiles.padded_head_dim(call)
    at_once = tiles.heads_at_once(call, 2 * call.group * call.T * call.H * q_BTNH.dtype.itemsize)
    sections = call.K // at_once

    def at(choose):
        """An index map from the row, key/value head, part of its group and block of keys of a program."""

        def index(x, y, z):
            k = lax.rem(z, sections) * at_once + lax.div(x, splits)
            return choose(lax.div(z, sections), k, lax.rem(x, splits), y)

        return index

    queries = pl.BlockSpec((None, all_queries, heads, h), at(lambda b, k, p, j: (b, 0, k * splits + p, 0)))
    vectors = pl.BlockSpec((None, heads, all_queries), at(lambda b, k, p, j: (b, k * splits + p, 0)))
    keys = pl.BlockSpec((None, block_k, None, h), at(lambda b, k, p, j: (b, j, k, 0)))
    sums = pl.BlockSpec((None, None, block_k, None, h), at(lambda b, k, p, j: (p, b, j, k, 0)))
    streams = pl.BlockSpec((None, heads), at(lambda b, k, p, j: (b, k * splits + p)))
    specs = Operands(
        ranges=BlockRanges._make([pl.BlockSpec((None, None), at(lambda b, k, p, j: (b, j)))] * 4),
        query_ids=pl.BlockSpec((None, all_queries), at(lambda b, k, p, j: (b, 0))),
        key_ids=pl.BlockSpec((None, block_k), at(lambda b, k, p, j: (b, j))),
        q=queries,
        k=keys,
        v=keys,
        streams=None if streams_BN is None else streams,
    )
    ranges = query_ranges(segment_ids_BT, call.blocks)
    operands = Operands(ranges, segment_ids_BT, segment_ids_BT, q_BTNH, k_BTKH, v_BTKH, streams_BN)
    shape = jax.ShapeDtypeStruct((splits, *k_BTKH.shape), k_BTKH.dtype if splits == 1 else jnp.float32)
    d_k_PBTKH, d_v_PBTKH = tiles.pallas_call(
        _d_keys_kernel,
        call,
        grid=(at_once * splits, call.key_blocks, call.B * sections),
        in_specs=[specs, vectors, vectors, queries],
        out_specs=[sums, sums],
        out_shape=[shape, shape],
        name="attention_dkv",
    )(operands, log_z_BNT, delta_BNT, d_out_BTNH)
    return jnp.sum(d_k_PBTKH, axis=0).astype(k_BTKH.dtype), jnp.sum(d_v_PBTKH, axis=0).astype(v_BTKH.dtype)


def _splits(call: Call) -> int:
    """Parts of a group of query heads; a divisor of the group, 1 where the programs are enough without."""
    programs = call.B * call.K * call.key_blocks
    divisors = [p for p in range(1, call.group + 1) if call.group % p == 0]
    return next((p for p in divisors if p * programs >= ENOUGH_PROGRAMS), call.group)


def _d_keys_kernel(refs: Operands, log_z_ref, delta_ref, d_out_ref, d_k_ref, d_v_ref, *, call: Call):
    block_q, block_k = call.blocks.block_q, call.blocks.block_k
    to_exponent, keep_rate = call.log2_scale, call.keep_rate
    s = pl.program_id(1) * block_k + jnp.arange(block_k)
    k_sh, v_sh = load(refs.k, s, call), load(refs.v, s, call)
    ids_s = load(refs.key_ids, s, call)

    def step(i, g, carry, *, masked: bool):
        d_k_sh, d_v_sh = carry
        block, inside = pl.ds(i * block_q, block_q), not masked
        t = i * block_q + jnp.arange(block_q)
        q_th = load(refs.q.at[block, g, :], t, call, inside=inside)
        scores_st = matmul(k_sh, q_th, transpose_b=True)
        if masked:
            ids_t = load(refs.query_ids.at[block], t, call)
            visible_st = (horizon(t, ids_t)[None, :] >= s[:, None]) & (ids_t[None, :] == ids_s[:, None])
            scores_st = jnp.where(visible_st, scores_st, MASKED)
        exponent_z_t = load(log_z_ref.at[g, block], t, call, inside=inside) * LOG2_E
        probs_st = exp2(scores_st * to_exponent - exponent_z_t[None, :], call)
        d_out_th = load(d_out_ref.at[block, g, :], t, call, inside=inside)
        if refs.streams is None:
            kept_probs_st = probs_st
        else:
            # The mask lives on in the signs of the probabilities: a tile of registers less than keeping it apart.
            kept_st = dropout.keep(refs.streams[g], t[None, :], s[:, None], rate=call.dropout_rate)
            probs_st = jnp.where(kept_st, probs_st, -probs_st)
            kept_probs_st = jnp.maximum(probs_st, 0.0)
        d_v_sh = d_v_sh + matmul(kept_probs_st.astype(d_out_th.dtype), d_out_th)
        d_probs_st = matmul(v_sh, d_out_th, transpose_b=True)
        if refs.streams is not None:
            d_probs_st = jnp.where(probs_st > 0.0, d_probs_st, 0.0)
            probs_st = jnp.abs(probs_st)
        d_scores_st = probs_st * (d_probs_st - load(delta_ref.at[g, block], t, call, inside=inside)[None, :])
        return d_k_sh + matmul(d_scores_st.astype(q_th.dtype), q_th), d_v_sh

    zeros = jnp.zeros(k_sh.shape, jnp.float32)
    heads = log_z_ref.shape[0]
    d_k_sh, d_v_sh = tiles.over_blocks([ref[...] for ref in refs.ranges], step, (zeros, zeros), heads=heads)
    store(d_k_ref, d_k_sh * (call.scale / keep_rate), s, call)
    store(d_v_ref, d_v_sh * (1.0 / keep_rate), s, call)
