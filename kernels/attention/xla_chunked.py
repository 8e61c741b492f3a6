"""Backend `xla_chunked`: plain XLA in memory O(T), a block of queries at a time. The quickest one on CPU.

A block of queries meets the keys up to its own end only (all, if keys have places of their own), so close to half of
the square is never computed. The
forward pass keeps the log of each softmax's denominator; the backward pass makes the probabilities again from it, as
FlashAttention does (Dao 2023, 2307.08691, algorithm 2). Blocks are written out one after the other, not looped over:
each has another number of keys.

Shapes: B batch, T sequence, K key/value heads, G query heads that share one, H head size; in a block, t queries and
the S keys that they meet, and M = G * t rows of the matmuls.
"""

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from kernels.attention.contract import MASKED, AttentionOutput, Request
from kernels.attention.dropout import keep

BLOCK = 64  # queries in a block: on CPU, the scores of a few heads then stay in a cache
LONGEST_BLOCK = 512  # longer sequences get longer blocks, up to this, so that the program stays small
BLOCKS = 16  # that a sequence has, between these limits


def attention(
    q_BTNH: Float[Array, "B T N H"], k_BTKH: Float[Array, "B S K H"], v_BTKH: Float[Array, "B S K H"], request: Request
) -> AttentionOutput:
    """As `reference.attention`, up to rounding."""
    B, T, N, H = q_BTNH.shape
    K = k_BTKH.shape[2]
    q_BKGTH = q_BTNH.reshape(B, T, K, N // K, H).transpose(0, 2, 3, 1, 4)
    k_BKTH, v_BKTH = k_BTKH.transpose(0, 2, 1, 3), v_BTKH.transpose(0, 2, 1, 3)
    out_BKGTH, log_z_BKGT = _attention(q_BKGTH, k_BKTH, v_BKTH, request)
    return AttentionOutput(out_BKGTH.transpose(0, 3, 1, 2, 4).reshape(B, T, N, H), log_z_BKGT.reshape(B, N, T))


def _blocks(T: int) -> list[tuple[int, int]]:
    """First and last + 1 position of every block."""
    size = min(max(BLOCK, -(-T // BLOCKS)), LONGEST_BLOCK)
    return [(start, min(start + size, T)) for start in range(0, T, size)]


@jax.custom_vjp
def _attention(q_BKGTH, k_BKTH, v_BKTH, request):
    return _forward(q_BKGTH, k_BKTH, v_BKTH, request)[0]


def _forward(q_BKGTH, k_BKTH, v_BKTH, request):
    out, log_z = [], []
    _, K, G, T, _ = q_BKGTH.shape
    streams_BN = request.streams_BN(K * G)
    for block in _blocks(T):
        start, end = block
        met = _keys_met(request, block)
        q_BKGtH, k_BKSH, v_BKSH = q_BKGTH[:, :, :, start:end], k_BKTH[:, :, met], v_BKTH[:, :, met]
        scores_BKGtS = _scores(q_BKGtH, k_BKSH, request, block)
        max_BKGt = jnp.max(scores_BKGtS, axis=-1)
        probs_BKGtS = jnp.exp(scores_BKGtS - max_BKGt[..., None])  # to be divided by their sum
        sum_BKGt = jnp.sum(probs_BKGtS, axis=-1)
        # What sees nothing: its row of ones is cancelled here, and is exp(MASKED - 0) = 0 in the backward pass.
        real_B11t = request.sighted_Bt(start, end)[:, None, None]
        drop = _dropper(request, streams_BN, block, K)
        mixed_BKGtH = _rows_times(drop(probs_BKGtS).astype(v_BKSH.dtype), v_BKSH)
        out.append((mixed_BKGtH * jnp.where(real_B11t, 1.0 / sum_BKGt, 0.0)[..., None]).astype(q_BKGTH.dtype))
        log_z.append(jnp.where(real_B11t, max_BKGt + jnp.log(sum_BKGt), 0.0))
    # Named, so that a rematerialisation policy can keep them and with them the whole forward pass.
    out_BKGTH = checkpoint_name(jnp.concatenate(out, axis=3), "attention")
    log_z_BKGT = checkpoint_name(jnp.concatenate(log_z, axis=3), "attention")
    return (out_BKGTH, log_z_BKGT), (q_BKGTH, k_BKTH, v_BKTH, request, streams_BN, out_BKGTH, log_z_BKGT)


def _backward(residuals, cotangents):
    d_out_BKGTH, d_log_z_BKGT = cotangents
    q_BKGTH, k_BKTH, v_BKTH, request, streams_BN, out_BKGTH, log_z_BKGT = residuals
    delta_BKGT = jnp.sum(d_out_BKGTH.astype(jnp.float32) * out_BKGTH.astype(jnp.float32), axis=-1) - d_log_z_BKGT
    (_, K, _, T, _), dtype = q_BKGTH.shape, q_BKGTH.dtype
    S = k_BKTH.shape[2]
    d_q, d_k_BKTH, d_v_BKTH = [], jnp.float32(0), jnp.float32(0)
    for block in _blocks(T):
        start, end = block
        rows = lambda a: a[:, :, :, start:end]  # noqa: B023, E731
        met = _keys_met(request, block)
        q_BKGtH, d_out_BKGtH, k_BKSH, v_BKSH = rows(q_BKGTH), rows(d_out_BKGTH), k_BKTH[:, :, met], v_BKTH[:, :, met]
        scores_BKGtS = _scores(q_BKGtH, k_BKSH, request, block)
        probs_BKGtS = jnp.exp(scores_BKGtS - rows(log_z_BKGT)[..., None])
        drop = _dropper(request, streams_BN, block, K)
        d_probs_BKGtS = drop(_rows_by_keys(d_out_BKGtH, v_BKSH))
        d_scores_BKGtS = request.scale * probs_BKGtS * (d_probs_BKGtS - rows(delta_BKGT)[..., None])
        d_scores_BKGtS = d_scores_BKGtS.astype(dtype)
        d_q.append(_rows_times(d_scores_BKGtS, k_BKSH).astype(dtype))
        behind = ((0, 0), (0, 0), (0, S - k_BKSH.shape[2]), (0, 0))
        d_k_BKTH += jnp.pad(_over_rows(d_scores_BKGtS, q_BKGtH), behind)
        d_v_BKTH += jnp.pad(_over_rows(drop(probs_BKGtS).astype(dtype), d_out_BKGtH), behind)
    return jnp.concatenate(d_q, axis=3), d_k_BKTH.astype(dtype), d_v_BKTH.astype(dtype), None


_attention.defvjp(_forward, _backward)


def _keys_met(request, block):
    """The keys that a block of queries is multiplied with: no more than it may see, where their order tells that."""
    return slice(None) if request.keys is not None else slice(block[1])


def _scores(q_BKGtH, k_BKSH, request, block):
    """Float32 scores [B, K, G, t, S], masked."""
    visible_BtS = request.visible_BtS(*block)
    return jnp.where(visible_BtS[:, None, None], request.scale * _rows_by_keys(q_BKGtH, k_BKSH), MASKED)


def _dropper(request, streams_BN, block, num_kv_heads):
    """Dropout of probabilities (or of their gradient) as a function: the same mask each time it is called."""
    if streams_BN is None:
        return lambda probs: probs
    start, end = block
    streams_BKG = streams_BN.reshape(len(streams_BN), num_kv_heads, -1)
    rate, queries_t1, keys_1S = request.dropout_rate, jnp.arange(start, end)[:, None], jnp.arange(end)[None, :]
    kept_BKGtS = keep(streams_BKG[..., None, None], queries_t1, keys_1S, rate=rate)
    return lambda probs: jnp.where(kept_BKGtS, probs / (1.0 - rate), 0.0)


# The three matmuls, as batches over B and K with the heads of a group side by side.


def _rows_by_keys(q_BKGtH, k_BKSH):
    B, K, G, t, H = q_BKGtH.shape
    q_BKMH = q_BKGtH.reshape(B, K, G * t, H)
    s_BKMS = jnp.einsum("BKMH,BKSH->BKMS", q_BKMH, k_BKSH, preferred_element_type=jnp.float32)
    return s_BKMS.reshape(B, K, G, t, -1)


def _rows_times(p_BKGtS, v_BKSH):
    B, K, G, t, S = p_BKGtS.shape
    o_BKMH = jnp.einsum("BKMS,BKSH->BKMH", p_BKGtS.reshape(B, K, G * t, S), v_BKSH, preferred_element_type=jnp.float32)
    return o_BKMH.reshape(B, K, G, t, -1)


def _over_rows(p_BKGtS, x_BKGtH):
    # The small operand and the small result are the ones that are transposed; the scores stay as they lie. Without
    # the barriers XLA folds the transpositions into the matmul, which on CPU is then four times slower.
    B, K, G, t, S = p_BKGtS.shape
    x_BKHM = jax.lax.optimization_barrier(x_BKGtH.reshape(B, K, G * t, -1).swapaxes(2, 3))
    o_BKHS = jnp.einsum("BKHM,BKMS->BKHS", x_BKHM, p_BKGtS.reshape(B, K, G * t, S), preferred_element_type=jnp.float32)
    return jax.lax.optimization_barrier(o_BKHS).swapaxes(2, 3)
