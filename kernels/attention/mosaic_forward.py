"""Forward pass of attention for Hopper: wgmma, TMA, and warpgroups with roles of their own.

A program computes `2 * 64` queries of one head. Its two computing warpgroups take turns on the tensor cores: while one
multiplies, the other is in its softmax (Shah et al. 2024, FlashAttention-3, 2407.08608, section 3.1). The softmax is
the online one (Dao 2023, 2307.08691), in base 2.

Shapes: B batch, T sequence, N query heads, K key/value heads, H head size, I blocks of queries; M queries of a
warpgroup and S keys of one step.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Float, Int

from kernels.attention import mosaic_parts as parts
from kernels.attention.mosaic_parts import COMPUTE, MATRIX, PER_ROW, ROWS, WARPGROUPS
from kernels.attention.passes import LOG2_E, Call, Inputs


def forward(
    inputs: Inputs, ranges_BI4: Int[Array, "B I 4"], call: Call
) -> tuple[Float[Array, "B T N H"], Float[Array, "B N padded"]]:
    """Output, and the log of each softmax's denominator (0 for a query that sees nothing), T padded as the ids are.

    q, k and v are 16-bit floats; segment ids are padded with zeros to `parts.VECTOR_MULTIPLE`; streams are not read
    without dropout. `ranges_BI4` are `ranges.key_ranges`, stacked.
    """
    block_k, stages = call.blocks.block_k, call.blocks.num_stages
    dtype, width, num_q_blocks = inputs.q_BTNH.dtype, parts.tile_width(call.H), call.query_blocks
    scores_shape, out_shape = (ROWS, block_k), (ROWS, width)

    def kernel(q_ref, k_ref, v_ref, ids_ref, ranges_ref, streams_ref, out_ref, log_z_ref):
        b, n = lax.axis_index("row"), lax.axis_index("head")
        i = num_q_blocks - 1 - lax.axis_index("queries")  # the longest programs first
        w = lax.axis_index(WARPGROUPS)
        columns = parts.head_columns(b * 0, call.H)
        ranges = tuple(ranges_ref[b, i, r] for r in range(4))
        first, _, _, end = ranges

        def compute(smem):
            q_first = (i * COMPUTE + w) * ROWS
            rows = pl.ds(q_first, ROWS)
            (k_ready, k_free), (v_ready, v_free) = smem.k_barriers, smem.v_barriers
            own = [(q_ref.at[b, rows, n, columns], smem.q), (ids_ref.at[b, rows], smem.q_ids)]
            parts.load_rows(w, smem.q_ready, own)
            parts.write_column_numbers(smem.columns.at[w])
            plgpu.barrier_wait(smem.q_ready.at[w])

            def meet_other():
                plgpu.barrier_arrive(smem.turn)
                plgpu.barrier_wait(smem.turn)

            def step(j, carry, mixed):
                acc_MH, max_M, sum_M = carry
                slot = lax.rem(j - first, jnp.int32(stages))
                plgpu.barrier_wait(k_ready.at[slot])

                def hide(start_MS):
                    return parts.hide_keys(start_MS, smem, w, slot, first_query=q_first, first_key=j * block_k)

                def scores(s_acc):
                    zeros_MS = plgpu.layout_cast(jnp.zeros(scores_shape, jnp.float32), MATRIX)
                    s_acc[...] = lax.cond(mixed, hide, lambda start_MS: start_MS, zeros_MS)
                    plgpu.wgmma(s_acc, smem.q.at[w], smem.k.at[slot].T)
                    meet_other()  # the tensor cores are ours until here
                    return s_acc[...]

                s_MS = pl.run_scoped(scores, plgpu.ACC(scores_shape, jnp.float32))
                plgpu.barrier_arrive(k_free.at[slot])
                new_max_M = jnp.maximum(max_M, s_MS.max(axis=1) * call.log2_scale)
                decay_M = jnp.exp2(max_M - new_max_M)
                p_MS = jnp.exp2(s_MS * call.log2_scale - parts.per_row(new_max_M, scores_shape))
                acc_MH = acc_MH * parts.per_row(decay_M, out_shape)
                sum_M = sum_M * decay_M + p_MS.sum(axis=1)
                if call.dropout_rate > 0.0:
                    place = {"first_query": q_first, "first_key": j * block_k}
                    stream, own_columns = streams_ref[b, n], smem.columns.at[w]
                    keep_MS = parts.kept_keys(stream, own_columns, **place, shape=scores_shape, call=call)
                    p_MS = jnp.where(keep_MS, p_MS, 0.0)  # the kept ones are scaled at the end
                p16_MS = p_MS.astype(dtype)
                # All of the softmax stays before the turn.
                acc_MH, sum_M, new_max_M, p16_MS = lax.optimization_barrier((acc_MH, sum_M, new_max_M, p16_MS))
                plgpu.barrier_arrive(smem.turn)
                plgpu.barrier_wait(v_ready.at[slot])
                plgpu.barrier_wait(smem.turn)

                def mix(acc_ref):
                    plgpu.wgmma(acc_ref, p16_MS, smem.v.at[slot])

                acc_MH = pl.run_state(mix)(plgpu.ACC.init(acc_MH))
                plgpu.barrier_arrive(v_free.at[slot])
                return acc_MH, new_max_M, sum_M

            start = (
                plgpu.layout_cast(jnp.zeros(out_shape, jnp.float32), MATRIX),
                plgpu.layout_cast(jnp.full((ROWS,), parts.LOWEST, jnp.float32), PER_ROW),
                plgpu.layout_cast(jnp.zeros((ROWS,), jnp.float32), PER_ROW),
            )
            pl.when(w == 1)(meet_other)  # half a step behind
            acc_MH, max_M, sum_M = parts.over_blocks(ranges, step, start)
            pl.when(w == 0)(meet_other)

            some_M = sum_M > 0.0
            sum_M = jnp.where(some_M, sum_M, 1.0)
            smem.q.at[w][...] = (acc_MH * parts.per_row((1.0 / call.keep_rate) / sum_M, out_shape)).astype(dtype)
            smem.log_z.at[w][...] = jnp.where(some_M, max_M * (1.0 / LOG2_E) + jnp.log(sum_M), 0.0)
            plgpu.commit_smem()
            plgpu.copy_smem_to_gmem(smem.q.at[w], out_ref.at[b, rows, n, columns])
            plgpu.copy_smem_to_gmem(smem.log_z.at[w], log_z_ref.at[b, n, rows])
            plgpu.wait_smem_to_gmem(0)

        def load(smem):
            kv_head = lax.div(n, jnp.int32(call.group))
            keys = lambda step: pl.ds((first + step) * block_k, block_k)  # noqa: E731
            k_copies = lambda step: [  # noqa: E731
                (k_ref.at[b, keys(step), kv_head, columns], smem.k),
                (ids_ref.at[b, keys(step)], smem.k_ids),
            ]
            v_copies = lambda step: [(v_ref.at[b, keys(step), kv_head, columns], smem.v)]  # noqa: E731
            rings = [parts.Ring(smem.k_barriers, k_copies), parts.Ring(smem.v_barriers, v_copies)]
            parts.load_ahead(rings, end - first, stages)

        scratch = {
            "q": parts.matrices(COMPUTE, ROWS, width, dtype=dtype),
            "k": parts.matrices(stages, block_k, width, dtype=dtype),
            "v": parts.matrices(stages, block_k, width, dtype=dtype),
            "q_ids": plgpu.SMEM((COMPUTE, ROWS), jnp.int32),
            "k_ids": plgpu.SMEM((stages, block_k), jnp.int32),
            "columns": plgpu.SMEM((COMPUTE, block_k), jnp.int32),
            "log_z": plgpu.SMEM((COMPUTE, ROWS), jnp.float32),
            "q_ready": plgpu.Barrier(num_arrivals=2, num_barriers=COMPUTE),
            "k_barriers": parts.barriers(stages, num_copies=2),
            "v_barriers": parts.barriers(stages, num_copies=1),
            "turn": plgpu.Barrier(num_arrivals=COMPUTE),
        }
        parts.by_role(w, scratch, compute, load)

    log_z = jax.ShapeDtypeStruct((call.B, call.N, inputs.segment_ids_BT.shape[1]), jnp.float32)
    return parts.launch(
        kernel,
        (jax.ShapeDtypeStruct(inputs.q_BTNH.shape, dtype), log_z),
        name="mosaic_attention_forward",
        grid={"row": call.B, "head": call.N, "queries": num_q_blocks},
        call=call,
    )(*inputs[:4], ranges_BI4, inputs.streams_BN)
