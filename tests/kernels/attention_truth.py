"""Attention, its dropout and its gradients in NumPy float64, one softmax for each token, by their definitions."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kernels.attention.cases import Case
from kernels.attention.dropout import Dropout


class Truth(NamedTuple):
    """What a backend must give."""

    out: np.ndarray
    log_z: np.ndarray
    dq: np.ndarray
    dk: np.ndarray
    dv: np.ndarray


def in_float64(case: Case, arrays, d_out, *, d_log_z=None, dropout: Dropout | None = None) -> Truth:
    """Outputs for q, k, v = `arrays`, gradients for the cotangents `d_out` [B, T, N, H] and `d_log_z` [B, N, T]."""
    q, k, v, d_out = (np.asarray(a, np.float64) for a in (*arrays, d_out))
    shape_BNT = (case.batch, case.num_heads, case.seq_len)
    d_log_z = np.zeros(shape_BNT) if d_log_z is None else np.asarray(d_log_z, np.float64)
    ids, group = case.segment_ids_BT(), case.num_heads // case.num_kv_heads
    out, dq, dk, dv, log_z = (*(np.zeros_like(a) for a in (q, q, k, v)), np.zeros(shape_BNT))
    scale = case.head_dim**-0.5
    for b in range(case.batch):
        for t in range(case.seq_len):
            seen = np.array([s for s in range(t + 1) if ids[b, s] == ids[b, t] != 0], int)
            if not len(seen):
                continue
            for n in range(case.num_heads):
                keys, values = k[b, seen, n // group], v[b, seen, n // group]
                scores = scale * keys @ q[b, t, n]
                log_z[b, n, t] = scores.max() + np.log(np.exp(scores - scores.max()).sum())
                p = np.exp(scores - log_z[b, n, t])
                kept = np.ones(len(seen))
                if dropout is not None:
                    kept = kept_by_hand(dropout, b, n, t, seen, case.dropout_rate) / (1 - case.dropout_rate)
                out[b, t, n] = (p * kept) @ values
                dp = kept * (values @ d_out[b, t, n])
                ds = scale * p * (dp - p @ dp + d_log_z[b, n, t])
                dq[b, t, n] = ds @ keys
                dk[b, seen, n // group] += ds[:, None] * q[b, t, n]
                dv[b, seen, n // group] += (p * kept)[:, None] * d_out[b, t, n]
    return Truth(out, log_z, dq, dk, dv)


def kept_by_hand(dropout: Dropout, row: int, head: int, t: int, s: np.ndarray, rate: float) -> np.ndarray:
    """The mask in Python's integers: which of the keys `s` are kept."""
    seed = [int(word) for word in dropout.seed_2]
    b, n = row + int(dropout.first_row), head + int(dropout.first_head)
    of_row = mixed((mixed(seed[0] ^ (b * 0x9E3779B9 % 2**32)) + seed[1]) % 2**32)
    of_query = mixed((mixed((of_row + n * 0x9E3779B9) % 2**32) + t * 0x9E3779B9) % 2**32)
    return np.array([mixed(of_query ^ (int(key) * 0x9E3779B9 % 2**32)) >= round(rate * 2**32) for key in s])


def mixed(x: int) -> int:
    """MurmurHash3's finaliser."""
    x = (x ^ (x >> 16)) * 0x85EBCA6B % 2**32
    x = (x ^ (x >> 13)) * 0xC2B2AE35 % 2**32
    return x ^ (x >> 16)


def cotangents(case: Case, dtype=jnp.float32) -> tuple[jax.Array, jax.Array]:
    """Standard normal d_out [B, T, N, H] in `dtype`, d_log_z [B, N, T] in float32."""
    rng = np.random.default_rng(1)
    d_out = rng.standard_normal((case.batch, case.seq_len, case.num_heads, case.head_dim))
    d_log_z = rng.standard_normal((case.batch, case.num_heads, case.seq_len))
    return jnp.asarray(d_out, dtype), jnp.asarray(d_log_z, jnp.float32)


def relative_error(actual, expected) -> float:
    """Largest deviation, relative to the largest expected value."""
    return float(np.max(np.abs(np.asarray(actual, np.float64) - expected)) / max(np.max(np.abs(expected)), 1e-30))
