"""Attention as one writes it down in 16 bits: an error that no backend may exceed."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from kernels.attention.contract import AttentionOutput
from kernels.attention.dropout import keep
from kernels.workshop.cases import Case
from tests.kernels.attention_truth import Truth, in_float64, with_gradients


@functools.cache
def truth_and_plain(case: Case, dtype) -> tuple[Truth, Truth]:
    """What every backend is compared with: float64, and attention as one writes it down."""
    return in_float64(case, dtype), with_gradients(plain_attention, case, dtype=dtype)


def assert_no_worse(actual: Truth, plain: Truth, truth: Truth) -> None:
    """The error of every result is at most that of plain attention."""
    for name, a, p, e in zip(Truth._fields, actual, plain, truth, strict=True):
        # log Z is a float32 sum in both.
        slack = 1e-7 if name == "log_z" else 0.0
        assert root_mean_square_error(a, e) <= root_mean_square_error(p, e) + slack, name


def plain_attention(q, k, v, request) -> AttentionOutput:
    """Attention as one writes it down in 16 bits: every intermediate result in the dtype of q, k and v."""
    (B, T, N, _), K = q.shape, k.shape[2]
    k, v = (jnp.repeat(a, N // K, axis=2) for a in (k, v))
    scores = jnp.einsum("BTNH,BSNH->BNTS", q, k) * request.scale
    visible = request.visible_BtS()[:, None]
    scores = jnp.where(visible, scores, -1e4).astype(jnp.float32)
    seen = jnp.any(visible, axis=-1)
    log_z = jnp.where(seen, jax.nn.logsumexp(scores, axis=-1), 0.0)
    probs = jnp.where(visible, jax.nn.softmax(scores, axis=-1), 0.0).astype(q.dtype)
    if request.dropout is not None:
        streams, t = request.dropout.streams_BN(batch=B, num_heads=N)[..., None, None], jnp.arange(T)
        kept = keep(streams, t[:, None], t[None, :], rate=request.dropout.rate)
        probs = jnp.where(kept, probs / (1 - request.dropout.rate), 0).astype(q.dtype)
    return AttentionOutput(jnp.einsum("BNTS,BSNH->BTNH", probs, v), log_z)


def root_mean_square_error(actual, expected) -> float:
    return float(np.sqrt(np.mean(np.square(np.asarray(actual, np.float64) - expected))))
