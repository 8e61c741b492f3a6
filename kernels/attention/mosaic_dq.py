"""Gradient of the queries for Hopper: the probabilities are made again from the forward pass's log_z, block by block.

A program has `2 * 64` queries of one head and walks over the keys that they see: S = Q K^T and dP = dO V^T run behind
one another on the tensor cores, and dQ gathers dS K in registers (Dao 2023, 2307.08691, algorithm 2). The gradients of
keys and values have a pass of their own (mosaic_dkv.py): no atomics, the same bits in every run.

Shapes as in mosaic_forward.py.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Float

from kernels.attention import mosaic_parts as parts
from kernels.attention.mosaic_parts import COMPUTE, PER_ROW, ROWS, WARPGROUPS, BackwardOperands
from kernels.attention.passes import Call


def gradient(operands: BackwardOperands, call: Call) -> Float[Array, "B T N H"]:
    """Gradient of q; the ranges are `ranges.key_ranges`."""
    block_k, stages = call.blocks.block_k, call.blocks.num_stages
    dtype, width, num_q_blocks = operands.q.dtype, parts.tile_width(call.H), call.query_blocks
    shape = (ROWS, block_k)

    def kernel(*all_refs):
        refs, (d_q_ref,) = BackwardOperands(*all_refs[:-1]), all_refs[-1:]
        b, n = lax.axis_index("row"), lax.axis_index("head")
        i = num_q_blocks - 1 - lax.axis_index("queries")
        w = lax.axis_index(WARPGROUPS)
        columns = parts.head_columns(b * 0, call.H)
        ranges = tuple(refs.ranges[b, i, r] for r in range(4))
        first, _, _, end = ranges

        def compute(smem):
            q_first = (i * COMPUTE + w) * ROWS
            rows = pl.ds(q_first, ROWS)
            ready, free = smem.barriers
            own = [
                (refs.q.at[b, rows, n, columns], smem.q),
                (refs.d_out.at[b, rows, n, columns], smem.d_out),
                (refs.ids.at[b, rows], smem.q_ids),
                (refs.minus_log_z.at[b, n, rows], smem.minus_log_z),
                (refs.minus_delta.at[b, n, rows], smem.minus_delta),
            ]
            parts.load_rows(w, smem.rows_ready, own)
            parts.write_column_numbers(smem.columns.at[w])
            plgpu.barrier_wait(smem.rows_ready.at[w])
            minus_log_z_M = plgpu.layout_cast(smem.minus_log_z[w], PER_ROW)
            minus_delta_M = plgpu.layout_cast(smem.minus_delta[w], PER_ROW)

            def all_blocks(d_q_acc):
                def step(j, carry, mixed):
                    slot = lax.rem(j - first, jnp.int32(stages))
                    plgpu.barrier_wait(ready.at[slot])

                    def hide(start_MS):
                        return parts.hide_keys(start_MS, smem, w, slot, first_query=q_first, first_key=j * block_k)

                    def score_gradients(s_acc, d_p_acc):
                        start_MS = parts.per_row(minus_log_z_M, shape)
                        start_MS = lax.cond(mixed, hide, lambda start_MS: start_MS, start_MS)
                        s_acc[...] = start_MS
                        if call.dropout_rate == 0.0:
                            d_p_acc[...] = parts.per_row(minus_delta_M, shape)
                        plgpu.wgmma(s_acc, smem.q.at[w], smem.k.at[slot].T)
                        plgpu.wgmma(d_p_acc, smem.d_out.at[w], smem.v.at[slot].T)
                        p_MS = jnp.exp2(plgpu.wgmma_accumulator_load(s_acc, wait_n=1) * call.log2_scale)
                        d_p_MS = plgpu.wgmma_accumulator_load(d_p_acc, wait_n=0)
                        if call.dropout_rate > 0.0:
                            place = {"first_query": q_first, "first_key": j * block_k}
                            stream, own_columns = refs.streams[b, n], smem.columns.at[w]
                            keep_MS = parts.kept_keys(stream, own_columns, **place, shape=shape, call=call)
                            d_p_MS = jnp.where(keep_MS, d_p_MS * (1.0 / call.keep_rate), 0.0)
                            d_p_MS = d_p_MS + parts.per_row(minus_delta_M, shape)
                        return (p_MS * d_p_MS).astype(dtype)

                    accumulator = plgpu.ACC(shape, jnp.float32)
                    d_s_MS = pl.run_scoped(score_gradients, accumulator, accumulator)
                    plgpu.wgmma(d_q_acc, d_s_MS, smem.k.at[slot])
                    plgpu.wgmma_wait(0)
                    plgpu.barrier_arrive(free.at[slot])
                    return carry

                parts.over_blocks(ranges, step, None)
                return d_q_acc[...]

            d_q_MH = pl.run_scoped(all_blocks, plgpu.ACC((ROWS, width), jnp.float32))
            smem.q.at[w][...] = (d_q_MH * call.scale).astype(dtype)
            plgpu.commit_smem()
            plgpu.copy_smem_to_gmem(smem.q.at[w], d_q_ref.at[b, rows, n, columns])
            plgpu.wait_smem_to_gmem(0)

        def load(smem):
            kv_head = lax.div(n, jnp.int32(call.group))

            def copies(step):
                keys = pl.ds((first + step) * block_k, block_k)
                return [
                    (refs.k.at[b, keys, kv_head, columns], smem.k),
                    (refs.ids.at[b, keys], smem.k_ids),
                    (refs.v.at[b, keys, kv_head, columns], smem.v),
                ]

            parts.load_ahead([parts.Ring(smem.barriers, copies)], end - first, stages)

        vector = lambda kind: plgpu.SMEM((COMPUTE, ROWS), kind)  # noqa: E731
        scratch = {
            "q": parts.matrices(COMPUTE, ROWS, width, dtype=dtype),
            "d_out": parts.matrices(COMPUTE, ROWS, width, dtype=dtype),
            "q_ids": vector(jnp.int32),
            "minus_log_z": vector(jnp.float32),
            "minus_delta": vector(jnp.float32),
            "k": parts.matrices(stages, block_k, width, dtype=dtype),
            "v": parts.matrices(stages, block_k, width, dtype=dtype),
            "k_ids": plgpu.SMEM((stages, block_k), jnp.int32),
            "columns": plgpu.SMEM((COMPUTE, block_k), jnp.int32),
            "rows_ready": plgpu.Barrier(num_arrivals=5, num_barriers=COMPUTE),
            "barriers": parts.barriers(stages, num_copies=3),
        }
        parts.by_role(w, scratch, compute, load)

    return parts.launch(
        kernel,
        jax.ShapeDtypeStruct(operands.q.shape, dtype),
        name="mosaic_attention_dq",
        grid={"row": call.B, "head": call.N, "queries": num_q_blocks},
        call=call,
    )(*operands)
