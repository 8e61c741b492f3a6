"""Backend `xla`, and the truth of every other backend: attention written down as it is defined."""

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from kernels.attention.contract import MASKED, AttentionOutput, Request
from kernels.attention.dropout import keep


def attention(
    q_BTNH: Float[Array, "B T N H"], k_BTKH: Float[Array, "B S K H"], v_BTKH: Float[Array, "B S K H"], request: Request
) -> AttentionOutput:
    """`softmax(scale * q k^T) v` over the visible keys, softmax in float32; memory O(T S).

    Dropout zeroes probabilities after the softmax and scales the kept ones by 1 / (1 - rate); log Z does not depend on
    it. Rows without a visible key give zeros, and so do their gradients.
    """
    B, T, N, H = q_BTNH.shape
    K = k_BTKH.shape[2]
    q_BTKGH = q_BTNH.reshape(B, T, K, N // K, H)
    scores_BKGTS = jnp.einsum("BTKGH,BSKH->BKGTS", q_BTKGH, k_BTKH, preferred_element_type=jnp.float32)
    visible_B11TS = request.visible_BtS()[:, None, None]
    scores_BKGTS = jnp.where(visible_B11TS, request.scale * scores_BKGTS, MASKED)
    log_z_BKGT = jax.nn.logsumexp(scores_BKGTS, axis=-1)
    # Where no key is visible the softmax is uniform over masked keys, and log Z about MASKED.
    probs_BKGTS = jnp.where(visible_B11TS, jnp.exp(scores_BKGTS - log_z_BKGT[..., None]), 0.0)
    log_z_BKGT = jnp.where(jnp.any(visible_B11TS, axis=-1), log_z_BKGT, 0.0)
    streams_BN = request.streams_BN(N)
    if streams_BN is not None:
        rate, streams = request.dropout_rate, streams_BN.reshape(B, K, N // K, 1, 1)
        positions = jnp.arange(T, dtype=jnp.int32)
        kept_BKGTS = keep(streams, positions[:, None], positions[None, :], rate=rate)
        probs_BKGTS = jnp.where(kept_BKGTS, probs_BKGTS / (1.0 - rate), 0.0)
    out_BTKGH = jnp.einsum("BKGTS,BSKH->BTKGH", probs_BKGTS.astype(v_BTKH.dtype), v_BTKH)
    out_BTNH = out_BTKGH.reshape(B, T, N, H).astype(q_BTNH.dtype)
    # Named as in the other backends, for rematerialisation policies.
    return AttentionOutput(checkpoint_name(out_BTNH, "attention"), log_z_BKGT.reshape(B, N, T))
