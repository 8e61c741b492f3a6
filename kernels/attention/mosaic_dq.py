"""Gradient of the queries for Hopper: the probabilities are made again from the forward pass's log_z, block by block.

A program has `2 * 64` queries of one head and walks over the keys that they see: S = Q K^T and dP = dO V^T run behind
one another on the tensor cores, and dQ gathers dS K in registers (Dao 2023, 2307.08691, algorithm 2). The gradients of
keys and values have a pass of their own (mosaic_dkv.py): no atomics, the same bits in every run.

Shapes as in mosaic_forward.py.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Float, Int, UInt32

from kernels.attention import dropout
from kernels.attention import mosaic_parts as parts
from kernels.attention.mosaic_parts import COMPUTE, PER_COLUMN, PER_ROW, ROWS, WARPGROUPS, Call


class _Scratch(NamedTuple):
    q: Any
    d_out: Any
    q_ids: Any
    minus_log_z: Any
    minus_delta: Any
    k: Any
    v: Any
    k_ids: Any
    columns: Any
    rows_ready: Any
    barriers: Any


def gradient(
    q_BTNH: Float[Array, "B T N H"],
    k_BTKH: Float[Array, "B T K H"],
    v_BTKH: Float[Array, "B T K H"],
    d_out_BTNH: Float[Array, "B T N H"],
    minus_log_z_BNT: Float[Array, "B N padded"],
    minus_delta_BNT: Float[Array, "B N padded"],
    ids_BT: Int[Array, "B padded"],
    ranges_BI4: Int[Array, "B I 4"],
    streams_BN: UInt32[Array, "B N"],
    call: Call,
) -> Float[Array, "B T N H"]:
    """Gradient of q.

    Args:
        minus_log_z_BNT: -log_z of the forward pass, over `scale`: what the sums of S start from.
        minus_delta_BNT: the cotangent of log_z, minus the sum of out * d_out over the head: the same for dP.
        others: as in `mosaic_forward.forward`.
    """
    B, T, N, H = q_BTNH.shape
    block_k, stages = call.blocks.block_k, call.blocks.num_stages
    group, dtype, width = N // k_BTKH.shape[2], q_BTNH.dtype, parts.tile_width(H)
    num_q_blocks = ranges_BI4.shape[1]
    shape = (ROWS, block_k)

    def kernel(
        q_ref, k_ref, v_ref, d_out_ref, minus_log_z_ref, minus_delta_ref, ids_ref, ranges_ref, streams_ref, d_q_ref
    ):
        b, n = lax.axis_index("row"), lax.axis_index("head")
        i = num_q_blocks - 1 - lax.axis_index("queries")
        w = lax.axis_index(WARPGROUPS)
        columns = parts.head_columns(b * 0, H)
        ranges = tuple(ranges_ref[b, i, r] for r in range(4))
        first, _, _, end = ranges

        def compute(smem: _Scratch):
            q_first = (i * COMPUTE + w) * ROWS
            rows = pl.ds(q_first, ROWS)
            ready, free = smem.barriers
            for source, tile in (
                (q_ref.at[b, rows, n, columns], smem.q),
                (d_out_ref.at[b, rows, n, columns], smem.d_out),
                (ids_ref.at[b, rows], smem.q_ids),
                (minus_log_z_ref.at[b, n, rows], smem.minus_log_z),
                (minus_delta_ref.at[b, n, rows], smem.minus_delta),
            ):
                plgpu.copy_gmem_to_smem(source, tile.at[w], smem.rows_ready.at[w])
            parts.write_column_numbers(smem.columns.at[w])
            plgpu.barrier_wait(smem.rows_ready.at[w])
            minus_log_z_M = plgpu.layout_cast(smem.minus_log_z[w], PER_ROW)
            minus_delta_M = plgpu.layout_cast(smem.minus_delta[w], PER_ROW)

            def all_blocks(d_q_acc):
                def step(j, carry, mixed):
                    slot = lax.rem(j - first, jnp.int32(stages))
                    plgpu.barrier_wait(ready.at[slot])

                    def hide(start_MS):
                        q_ids_M = plgpu.layout_cast(smem.q_ids[w], PER_ROW)
                        # The last position that a query sees; padding sees none.
                        sees_M = jnp.where(q_ids_M != 0, parts.row_positions(q_first), -1)
                        k_ids_S = plgpu.layout_cast(smem.k_ids[slot], PER_COLUMN)
                        columns_S = plgpu.layout_cast(smem.columns[w], PER_COLUMN)
                        causal_MS = parts.per_column(columns_S, shape) <= parts.per_row(sees_M - j * block_k, shape)
                        return parts.hidden(start_MS, causal_MS, q_ids_M, k_ids_S)

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
                            columns_S = plgpu.layout_cast(smem.columns[w], PER_COLUMN)
                            t_MS = parts.per_row(parts.row_positions(q_first), shape)
                            keys_MS = parts.per_column(columns_S + j * block_k, shape)
                            keep_MS = dropout.keep(streams_ref[b, n], t_MS, keys_MS, rate=call.dropout_rate)
                            d_p_MS = jnp.where(keep_MS, d_p_MS * call.kept_scale, 0.0)
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

        def load(smem: _Scratch):
            kv_head = lax.div(n, jnp.int32(group))

            def copies(step):
                keys = pl.ds((first + step) * block_k, block_k)
                return [
                    (k_ref.at[b, keys, kv_head, columns], smem.k),
                    (ids_ref.at[b, keys], smem.k_ids),
                    (v_ref.at[b, keys, kv_head, columns], smem.v),
                ]

            parts.load_ahead([parts.Ring(smem.barriers, copies)], end - first, stages)

        def work(*refs):
            smem = _Scratch(*refs)
            parts.by_role(w, functools.partial(compute, smem), functools.partial(load, smem))

        vector = lambda kind: plgpu.SMEM((COMPUTE, ROWS), kind)  # noqa: E731
        pl.run_scoped(
            work,
            *_Scratch(
                q=parts.matrices(COMPUTE, ROWS, width, dtype=dtype),
                d_out=parts.matrices(COMPUTE, ROWS, width, dtype=dtype),
                q_ids=vector(jnp.int32),
                minus_log_z=vector(jnp.float32),
                minus_delta=vector(jnp.float32),
                k=parts.matrices(stages, block_k, width, dtype=dtype),
                v=parts.matrices(stages, block_k, width, dtype=dtype),
                k_ids=plgpu.SMEM((stages, block_k), jnp.int32),
                columns=plgpu.SMEM((COMPUTE, block_k), jnp.int32),
                rows_ready=plgpu.Barrier(num_arrivals=5, num_barriers=COMPUTE),
                barriers=parts.barriers(stages, num_copies=3),
            ),
            collective_axes=WARPGROUPS,
        )

    return parts.launch(
        kernel,
        jax.ShapeDtypeStruct(q_BTNH.shape, dtype),
        name="mosaic_attention_dq",
        grid={"row": B, "head": N, "queries": num_q_blocks},
        call=call,
    )(q_BTNH, k_BTKH, v_BTKH, d_out_BTNH, minus_log_z_BNT, minus_delta_BNT, ids_BT, ranges_BI4, streams_BN)
