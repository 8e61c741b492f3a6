"""Forward kernel of the `triton` backend: FlashAttention-2 (Dao 2023, 2307.08691, algorithm 1).

A program owns a block of queries of one head and walks over the keys. Scores stay as the matmul gives them: scale and
log2(e) are folded into the argument of exp2, one fused multiply-add for each score. Names of shapes are in
`triton_tiles`.
"""

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array

from kernels.attention import dropout
from kernels.attention import triton_tiles as tiles
from kernels.attention.contract import MASKED
from kernels.attention.passes import Call, Inputs
from kernels.attention.triton_tiles import Operands, exp2, horizon, load, matmul, store


def forward(inputs: Inputs, call: Call) -> tuple[Array, Array]:
    """Returns out_BTNH in the dtype of q and log_z_BNT in float32."""
    grid, specs, operands, vector = tiles.over_queries(inputs, call)
    log_z_BNT = jax.ShapeDtypeStruct((call.B, call.N, call.T), jnp.float32)
    return tiles.pallas_call(
        _kernel,
        call,
        grid=grid,
        in_specs=[specs],
        out_specs=[specs.q, vector],
        out_shape=[jax.ShapeDtypeStruct(inputs.q_BTNH.shape, inputs.q_BTNH.dtype), log_z_BNT],
        name="attention_forward",
    )(operands)


def _kernel(refs: Operands, out_ref, log_z_ref, *, call: Call):
    block_q, block_k = call.blocks.block_q, call.blocks.block_k
    to_exponent = call.log2_scale
    t = tiles.query_positions(call)
    q_th = load(refs.q, t, call)
    ids_t = load(refs.query_ids, t, call)
    horizon_t = horizon(t, ids_t)
    stream = None if refs.streams is None else refs.streams[...]

    def step(j, _, carry, *, masked: bool):
        mixed_th, max_t, sum_t = carry
        block = pl.ds(j * block_k, block_k)
        s = j * block_k + jnp.arange(block_k)
        scores_ts = matmul(q_th, load(refs.k.at[block, :], s, call, inside=not masked), transpose_b=True)
        if masked:
            ids_s = load(refs.key_ids.at[block], s, call)
            visible_ts = (horizon_t[:, None] >= s[None, :]) & (ids_t[:, None] == ids_s[None, :])
            scores_ts = jnp.where(visible_ts, scores_ts, MASKED)
        new_max_t = jnp.maximum(max_t, jnp.max(scores_ts, axis=1))
        # A query that has seen nothing so far: its probabilities come out as exp2(MASKED) = 0, not as 1.
        shift_t = to_exponent * (jnp.where(new_max_t == MASKED, 0.0, new_max_t) if masked else new_max_t)
        probs_ts = exp2(scores_ts * to_exponent - shift_t[:, None], call)
        fade_t = exp2(max_t * to_exponent - shift_t, call)
        sum_t = sum_t * fade_t + jnp.sum(probs_ts, axis=1)
        if stream is not None:
            kept_ts = dropout.keep(stream, t[:, None], s[None, :], rate=call.dropout_rate)
            probs_ts = jnp.where(kept_ts, probs_ts, 0.0)  # times 1 / (1 - rate) at the end
        v_sh = load(refs.v.at[block, :], s, call, inside=not masked)
        mixed_th = mixed_th * fade_t[:, None] + matmul(probs_ts.astype(v_sh.dtype), v_sh)
        return mixed_th, new_max_t, sum_t

    start = (
        jnp.zeros(q_th.shape, jnp.float32),
        jnp.full((block_q,), MASKED, jnp.float32),
        jnp.zeros((block_q,), jnp.float32),
    )
    mixed_th, max_t, sum_t = tiles.over_blocks([ref[...] for ref in refs.ranges], step, start)
    blind_t = sum_t == 0.0
    sum_t = jnp.where(blind_t, 1.0, sum_t)
    store(out_ref, mixed_th * (1.0 / (call.keep_rate * sum_t))[:, None], t, call)
    store(log_z_ref, jnp.where(blind_t, 0.0, max_t * call.scale + jnp.log(sum_t)), t, call)
