"""Attention as one writes it down in 16 bits: an error that no backend may exceed."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from kernels.attention import reference
from kernels.attention.cases import Case
from kernels.attention.dropout import from_key, keep, streams_BN
from kernels.attention.reference import AttentionOutput
from tests.kernels.attention_truth import Truth, cotangents, in_float64


@functools.cache
def truth_and_plain(case: Case, dtype) -> tuple[Truth, Truth]:
    """What every backend is compared with: float64, and attention as one writes it down."""
    key = jax.random.key(5) if case.dropout_rate else None
    arrays, (d_out, d_log_z) = case.arrays(dtype=dtype), cotangents(case, dtype)
    truth = in_float64(case, arrays, d_out, d_log_z=d_log_z, dropout=from_key(key) if case.dropout_rate else None)
    return truth, jax.jit(functools.partial(plain_attention, case, key=key))(arrays, d_out, d_log_z)


def assert_no_worse(actual: Truth, plain: Truth, truth: Truth) -> None:
    """The error of every result is at most that of plain attention."""
    for name, a, p, e in zip(Truth._fields, actual, plain, truth, strict=True):
        # log Z is a float32 sum in both.
        slack = 1e-7 if name == "log_z" else 0.0
        assert root_mean_square_error(a, e) <= root_mean_square_error(p, e) + slack, name


def plain_attention(case, arrays, d_out, d_log_z, *, key) -> Truth:
    """Attention as one writes it down in 16 bits: every intermediate result in the dtype of q, k and v."""

    def attend(q, k, v):
        group = case.num_heads // case.num_kv_heads
        k, v = (jnp.repeat(a, group, axis=2) for a in (k, v))
        scores = jnp.einsum("BTNH,BSNH->BNTS", q, k) * case.head_dim**-0.5
        visible = reference.visible_BTS(jnp.asarray(case.segment_ids_BT()))[:, None]
        scores = jnp.where(visible, scores, -1e4).astype(jnp.float32)
        seen = jnp.any(visible, axis=-1)
        log_z = jnp.where(seen, jax.nn.logsumexp(scores, axis=-1), 0.0)
        probs = jnp.where(visible, jax.nn.softmax(scores, axis=-1), 0.0).astype(q.dtype)
        if key is not None:
            streams = streams_BN(from_key(key), batch=case.batch, num_heads=case.num_heads)[..., None, None]
            t = jnp.arange(case.seq_len)
            kept = keep(streams, t[:, None], t[None, :], rate=case.dropout_rate)
            probs = jnp.where(kept, probs / (1 - case.dropout_rate), 0).astype(q.dtype)
        return AttentionOutput(jnp.einsum("BNTS,BSNH->BTNH", probs, v), log_z)

    output, gradient = jax.vjp(attend, *arrays)
    return Truth(*output, *gradient(AttentionOutput(d_out, d_log_z)))


def root_mean_square_error(actual, expected) -> float:
    return float(np.sqrt(np.mean(np.square(np.asarray(actual, np.float64) - expected))))
