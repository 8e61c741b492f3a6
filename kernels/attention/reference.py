"""Backend `xla`, and the contract of every other backend: attention written down as it is defined.

Shapes: B batch, T sequence, N query heads, K key/value heads, G = N / K query heads that share one, H head size;
S is T on the side of the keys.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

# Stands for minus infinity in the scores: finite, so that a row without any visible key gives no NaN.
MASKED = -1e30


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
    dropout_key: Array | None = None,
) -> Float[Array, "B T N H"]:
    """`softmax(scale * q k^T) v` over the visible keys, softmax in float32; memory O(T^2).

    Dropout zeroes probabilities after the softmax and scales the kept ones by 1 / (1 - rate).
    Rows without a visible key give zeros, and so do their gradients.
    """
    B, T, N, H = q_BTNH.shape
    K = k_BTKH.shape[2]
    q_BTKGH = q_BTNH.reshape(B, T, K, N // K, H)
    scores_BKGTS = jnp.einsum("BTKGH,BSKH->BKGTS", q_BTKGH, k_BTKH, preferred_element_type=jnp.float32)
    visible_B11TS = visible_BTS(segment_ids_BT)[:, None, None]
    probs_BKGTS = jax.nn.softmax(jnp.where(visible_B11TS, scale * scores_BKGTS, MASKED), axis=-1)
    # Where no key is visible the softmax above is uniform over masked keys.
    probs_BKGTS = jnp.where(visible_B11TS, probs_BKGTS, 0.0)
    if dropout_key is not None and dropout_rate > 0.0:
        keep_BKGTS = jax.random.bernoulli(dropout_key, 1.0 - dropout_rate, probs_BKGTS.shape)
        probs_BKGTS = jnp.where(keep_BKGTS, probs_BKGTS / (1.0 - dropout_rate), 0.0)
    out_BTKGH = jnp.einsum("BKGTS,BSKH->BTKGH", probs_BKGTS.astype(v_BTKH.dtype), v_BTKH)
    return out_BTKGH.reshape(B, T, N, H).astype(q_BTNH.dtype)
