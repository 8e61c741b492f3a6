"""Backend `xla`, and the contract of every other backend: attention written down as it is defined.

Shapes: B batch, T sequence, N query heads, K key/value heads, G = N / K query heads that share one, H head size;
S is T on the side of the keys.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from kernels.attention.dropout import Dropout, keep, streams_BN

# Stands for minus infinity in the scores: finite, so that a row without any visible key gives no NaN.
MASKED = -1e30


class AttentionOutput(NamedTuple):
    """What every backend gives; both parts can be differentiated."""

    out_BTNH: Float[Array, "B T N H"]
    # The log of each softmax's denominator, sum(exp(scale * q k)) over the visible keys, float32; 0 where none is
    # visible. Two outputs over different keys can be joined by it.
    log_z_BNT: Float[Array, "B N T"]


def visible_BTS(segment_ids_BT: Int[Array, "B T"]) -> Array:
    """Which keys a query may see: at or before it in the row, and of the same segment; padding (0) sees nothing."""
    T = segment_ids_BT.shape[1]
    causal_TS = jnp.arange(T)[:, None] >= jnp.arange(T)[None, :]
    same_BTS = segment_ids_BT[:, :, None] == segment_ids_BT[:, None, :]
    return causal_TS & same_BTS & (segment_ids_BT != 0)[:, :, None]


def attention(
    q_BTNH: Float[Array, "B T N H"],
    k_BTKH: Float[Array, "B T K H"],
    v_BTKH: Float[Array, "B T K H"],
    *,
    segment_ids_BT: Int[Array, "B T"],
    scale: float,
    dropout_rate: float = 0.0,
    dropout: Dropout | None = None,
) -> AttentionOutput:
    """`softmax(scale * q k^T) v` over the visible keys, softmax in float32; memory O(T^2).

    Dropout zeroes probabilities after the softmax and scales the kept ones by 1 / (1 - rate); log Z knows nothing of
    it. Rows without a visible key give zeros, and so do their gradients.
    """
    B, T, N, H = q_BTNH.shape
    K = k_BTKH.shape[2]
    q_BTKGH = q_BTNH.reshape(B, T, K, N // K, H)
    scores_BKGTS = jnp.einsum("BTKGH,BSKH->BKGTS", q_BTKGH, k_BTKH, preferred_element_type=jnp.float32)
    visible_B11TS = visible_BTS(segment_ids_BT)[:, None, None]
    scores_BKGTS = jnp.where(visible_B11TS, scale * scores_BKGTS, MASKED)
    log_z_BKGT = jax.nn.logsumexp(scores_BKGTS, axis=-1)
    # Where no key is visible the softmax is uniform over masked keys, and log Z about MASKED.
    probs_BKGTS = jnp.where(visible_B11TS, jnp.exp(scores_BKGTS - log_z_BKGT[..., None]), 0.0)
    log_z_BKGT = jnp.where(jnp.any(visible_B11TS, axis=-1), log_z_BKGT, 0.0)
    if dropout is not None and dropout_rate > 0.0:
        streams = streams_BN(dropout, batch=B, num_heads=N).reshape(B, K, N // K, 1, 1)
        positions = jnp.arange(T, dtype=jnp.int32)
        kept_BKGTS = keep(streams, positions[:, None], positions[None, :], rate=dropout_rate)
        probs_BKGTS = jnp.where(kept_BKGTS, probs_BKGTS / (1.0 - dropout_rate), 0.0)
    out_BTKGH = jnp.einsum("BKGTS,BSKH->BTKGH", probs_BKGTS.astype(v_BTKH.dtype), v_BTKH)
    out_BTNH = out_BTKGH.reshape(B, T, N, H).astype(q_BTNH.dtype)
    # Named as in the other backends, for rematerialisation policies.
    return AttentionOutput(checkpoint_name(out_BTNH, "attention"), log_z_BKGT.reshape(B, N, T))
