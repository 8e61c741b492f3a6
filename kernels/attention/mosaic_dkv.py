"""Gradients of keys and values for Hopper, the other half of the backward pass (see mosaic_dq.py).

A program has `2 * 64` keys of one key/value head and walks over the queries that see them, of all the query heads that
share it: the sum over the group is taken in registers, and nothing is repeated in memory. All is computed transposed,
S^T = K Q^T and dP^T = V dO^T, so that P^T and dS^T are left operands in registers: dV gathers P^T dO and dK dS^T Q.

Shapes: B batch, T sequence, N query heads, K key/value heads, H head size, J blocks of keys; M keys of a warpgroup
and S queries of one step.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Float

from kernels.attention import dropout
from kernels.attention import mosaic_parts as parts
from kernels.attention.mosaic_parts import COMPUTE, PER_COLUMN, PER_ROW, ROWS, WARPGROUPS, BackwardOperands
from kernels.attention.passes import Call


def gradients(operands: BackwardOperands, call: Call) -> tuple[Float[Array, "B T K H"], Float[Array, "B T K H"]]:
    """Gradients of k and v; the ranges are `ranges.query_ranges`."""
    block_q, stages = call.blocks.block_q, call.blocks.num_stages
    group, dtype, width = call.group, operands.q.dtype, parts.tile_width(call.H)
    shape = (ROWS, block_q)

    def kernel(*all_refs):
        refs, (d_k_ref, d_v_ref) = BackwardOperands(*all_refs[:-2]), all_refs[-2:]
        b, kv_head = lax.axis_index("row"), lax.axis_index("head")
        j = lax.axis_index("keys")  # the first keys are seen by most queries: the longest programs come first
        w = lax.axis_index(WARPGROUPS)
        columns = parts.head_columns(b * 0, call.H)
        ranges = tuple(refs.ranges[b, j, r] for r in range(4))
        first, _, _, end = ranges
        steps_of_head = end - first

        def compute(smem):
            k_first = (j * COMPUTE + w) * ROWS
            rows = pl.ds(k_first, ROWS)
            ready, free = smem.barriers
            own = [
                (refs.k.at[b, rows, kv_head, columns], smem.k),
                (refs.v.at[b, rows, kv_head, columns], smem.v),
                (refs.ids.at[b, rows], smem.k_ids),
            ]
            parts.load_rows(w, smem.rows_ready, own)
            parts.write_column_numbers(smem.columns.at[w])
            plgpu.barrier_wait(smem.rows_ready.at[w])

            def all_blocks(d_k_acc, d_v_acc):
                def step(i, count, mixed, *, g):
                    slot = lax.rem(count, jnp.int32(stages))
                    plgpu.barrier_wait(ready.at[slot])

                    def hide(start_MS):
                        k_ids_M = plgpu.layout_cast(smem.k_ids[w], PER_ROW)
                        # The first position that sees a key; none sees padding.
                        never = jnp.iinfo(jnp.int32).max // 2
                        seen_from_M = jnp.where(k_ids_M != 0, parts.row_positions(k_first), never)
                        q_ids_S = plgpu.layout_cast(smem.q_ids[slot], PER_COLUMN)
                        columns_S = plgpu.layout_cast(smem.columns[w], PER_COLUMN)
                        seen_in_block_MS = parts.per_row(seen_from_M - i * block_q, shape)
                        causal_MS = parts.per_column(columns_S, shape) >= seen_in_block_MS
                        return parts.hidden(start_MS, causal_MS, k_ids_M, q_ids_S)

                    def column(vectors):
                        return parts.per_column(plgpu.layout_cast(vectors[slot], PER_COLUMN), shape)

                    # The sums start from what they are to be lowered by: that needs no registers later.
                    def start_s(s_acc):
                        start_MS = column(smem.minus_log_z)
                        s_acc[...] = lax.cond(mixed, hide, lambda start_MS: start_MS, start_MS)

                    def multiply_s(s_acc):
                        plgpu.wgmma(s_acc, smem.k.at[w], smem.q.at[slot].T)

                    def multiply_d_p(d_p_acc):
                        plgpu.wgmma(d_p_acc, smem.v.at[w], smem.d_out.at[slot].T)

                    def d_scores(s_acc, d_p_acc):
                        start_s(s_acc)
                        d_p_acc[...] = column(smem.minus_delta)
                        multiply_s(s_acc)
                        multiply_d_p(d_p_acc)
                        p_MS = jnp.exp2(plgpu.wgmma_accumulator_load(s_acc, wait_n=1) * call.log2_scale)
                        plgpu.wgmma(d_v_acc, p_MS.astype(dtype), smem.d_out.at[slot])
                        d_p_MS = plgpu.wgmma_accumulator_load(d_p_acc, wait_n=1)
                        return (p_MS * d_p_MS).astype(dtype)

                    def d_scores_with_dropout(s_acc, d_p_acc):
                        start_s(s_acc)
                        multiply_s(s_acc)
                        p_MS = jnp.exp2(plgpu.wgmma_accumulator_load(s_acc, wait_n=0) * call.log2_scale)
                        columns_S = plgpu.layout_cast(smem.columns[w], PER_COLUMN)
                        t_MS = parts.per_column(columns_S + i * block_q, shape)
                        keys_MS = parts.per_row(parts.row_positions(k_first), shape)
                        stream = refs.streams[b, kv_head * group + g]
                        keep_MS = dropout.keep(stream, t_MS, keys_MS, rate=call.dropout_rate)
                        # The mask travels as the sign of the probabilities: no registers of its own, nothing spills.
                        signed_p_MS = jnp.where(keep_MS, p_MS, -p_MS)
                        plgpu.wgmma(d_v_acc, jnp.maximum(signed_p_MS, 0.0).astype(dtype), smem.d_out.at[slot])
                        multiply_d_p(d_p_acc)
                        d_p_MS = plgpu.wgmma_accumulator_load(d_p_acc, wait_n=0)
                        d_p_MS = jnp.where(signed_p_MS > 0.0, d_p_MS * (1.0 / call.keep_rate), 0.0)
                        return (jnp.abs(signed_p_MS) * (d_p_MS + column(smem.minus_delta))).astype(dtype)

                    sums = plgpu.ACC(shape, jnp.float32)
                    d_s_MS = pl.run_scoped(d_scores_with_dropout if call.dropout_rate else d_scores, sums, sums)
                    plgpu.wgmma(d_k_acc, d_s_MS, smem.q.at[slot])
                    plgpu.wgmma_wait(0)
                    plgpu.barrier_arrive(free.at[slot])
                    return count + 1

                def of_head(g, count):
                    return parts.over_blocks(ranges, functools.partial(step, g=g), count)

                lax.fori_loop(0, group, of_head, 0)
                return d_k_acc[...], d_v_acc[...]

            sums = plgpu.ACC((ROWS, width), jnp.float32)
            d_k_MH, d_v_MH = pl.run_scoped(all_blocks, sums, sums)
            smem.k.at[w][...] = (d_k_MH * call.scale).astype(dtype)
            smem.v.at[w][...] = (d_v_MH * (1.0 / call.keep_rate)).astype(dtype)
            plgpu.commit_smem()
            plgpu.copy_smem_to_gmem(smem.k.at[w], d_k_ref.at[b, rows, kv_head, columns])
            plgpu.copy_smem_to_gmem(smem.v.at[w], d_v_ref.at[b, rows, kv_head, columns])
            plgpu.wait_smem_to_gmem(0)

        def load(smem):

            def copies(step):
                n = kv_head * group + lax.div(step, steps_of_head)
                queries = pl.ds((first + lax.rem(step, steps_of_head)) * block_q, block_q)
                return [
                    (refs.q.at[b, queries, n, columns], smem.q),
                    (refs.ids.at[b, queries], smem.q_ids),
                    (refs.minus_log_z.at[b, n, queries], smem.minus_log_z),
                    (refs.d_out.at[b, queries, n, columns], smem.d_out),
                    (refs.minus_delta.at[b, n, queries], smem.minus_delta),
                ]

            parts.load_ahead([parts.Ring(smem.barriers, copies)], steps_of_head * group, stages)

        vector = lambda kind: plgpu.SMEM((stages, block_q), kind)  # noqa: E731
        scratch = {
            "k": parts.matrices(COMPUTE, ROWS, width, dtype=dtype),
            "v": parts.matrices(COMPUTE, ROWS, width, dtype=dtype),
            "k_ids": plgpu.SMEM((COMPUTE, ROWS), jnp.int32),
            "q": parts.matrices(stages, block_q, width, dtype=dtype),
            "d_out": parts.matrices(stages, block_q, width, dtype=dtype),
            "q_ids": vector(jnp.int32),
            "columns": plgpu.SMEM((COMPUTE, block_q), jnp.int32),
            "minus_log_z": vector(jnp.float32),
            "minus_delta": vector(jnp.float32),
            "rows_ready": plgpu.Barrier(num_arrivals=3, num_barriers=COMPUTE),
            "barriers": parts.barriers(stages, num_copies=5),
        }
        parts.by_role(w, scratch, compute, load)

    like_k = jax.ShapeDtypeStruct(operands.k.shape, dtype)
    return parts.launch(
        kernel,
        (like_k, like_k),
        name="mosaic_attention_dkv",
        grid={"row": call.B, "head": call.K, "keys": call.key_blocks},
        call=call,
    )(*operands)
