"""Attention, its dropout and its gradients in NumPy float64, one softmax for each token, by their definitions."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kernels.attention.contract import AttentionOutput
from kernels.attention.dropout import Dropout
from kernels.workshop.cases import Case


class Truth(NamedTuple):
    """What a backend must give."""

    out: np.ndarray
    log_z: np.ndarray
    dq: np.ndarray
    dk: np.ndarray
    dv: np.ndarray


def assert_true(serve: Callable, case: Case, *, dtype=jnp.float32, bound: float = 1e-5) -> Truth:
    """All five results of a backend are within `bound` of the truth, which is returned."""
    truth = in_float64(case, dtype)
    assert_close(with_gradients(serve, case, dtype=dtype), truth, dtype=dtype, bound=bound)
    return truth


def assert_close(actual: Truth, truth: Truth, *, dtype, bound: float) -> None:
    """Dtypes are those of the contract, and no result deviates by more than `bound` of the largest true value."""
    for name, a, e in zip(Truth._fields, actual, truth, strict=True):
        assert a.dtype == (jnp.float32 if name == "log_z" else dtype)
        assert relative_error(a, e) <= bound, name


def with_gradients(serve: Callable, case: Case, *, arrays=None, dtype=jnp.float32) -> Truth:
    """Output and gradients of `serve(q, k, v, request)`, compiled; for other q, k, v than the case's where given."""
    arrays = case.arrays(dtype=dtype) if arrays is None else arrays
    return Truth(*_compiled(serve)(arrays, case.request(), cotangents(case, dtype)))


@functools.cache
def _compiled(serve: Callable) -> Callable:
    """One program for all cases of a shape, whose documents are arguments."""

    @jax.jit
    def run(arrays, request, d_outputs):
        output, gradient = jax.vjp(lambda q, k, v: serve(q, k, v, request), *arrays)
        return *output, *gradient(AttentionOutput(*d_outputs))

    return run


@functools.cache
def in_float64(case: Case, dtype=jnp.float32) -> Truth:
    """Outputs and gradients for the case's arrays and `cotangents`, as they are in `dtype`."""
    q, k, v, d_out, d_log_z = (np.asarray(a, np.float64) for a in (*case.arrays(dtype=dtype), *cotangents(case, dtype)))
    ids, group, dropout = case.segment_ids_BT(), case.num_heads // case.num_kv_heads, case.dropout
    out, dq, dk, dv, log_z = (np.zeros_like(a) for a in (q, q, k, v, d_log_z))
    scale = case.head_dim**-0.5
    for b in range(case.batch):
        for t in range(case.seq_len):
            seen = np.flatnonzero((ids[b] == ids[b, t]) & (ids[b] != 0) & (np.arange(case.seq_len) <= t))
            if not len(seen):
                continue
            for n in range(case.num_heads):
                keys, values = k[b, seen, n // group], v[b, seen, n // group]
                scores = scale * keys @ q[b, t, n]
                log_z[b, n, t] = scores.max() + np.log(np.exp(scores - scores.max()).sum())
                p = np.exp(scores - log_z[b, n, t])
                kept = np.ones(len(seen))
                if dropout is not None:
                    kept = kept_by_hand(dropout, b, n, t, seen) / (1 - case.dropout_rate)
                out[b, t, n] = (p * kept) @ values
                dp = kept * (values @ d_out[b, t, n])
                ds = scale * p * (dp - p @ dp + d_log_z[b, n, t])
                dq[b, t, n] = ds @ keys
                dk[b, seen, n // group] += ds[:, None] * q[b, t, n]
                dv[b, seen, n // group] += (p * kept)[:, None] * d_out[b, t, n]
    return Truth(out, log_z, dq, dk, dv)


def kept_by_hand(dropout: Dropout, row: int, head: int, t: int, s: np.ndarray) -> np.ndarray:
    """The mask in exact integers: which of the keys `s` are kept."""
    seed = [int(word) for word in dropout.seed_2]
    b, n = row + int(dropout.first_row), head + int(dropout.first_head)
    of_row = mixed((mixed(seed[0] ^ (b * 0x9E3779B9 % 2**32)) + seed[1]) % 2**32)
    of_query = mixed((mixed((of_row + n * 0x9E3779B9) % 2**32) + t * 0x9E3779B9) % 2**32)
    threshold = round(dropout.rate * 2**32)
    return mixed(of_query ^ (s.astype(np.uint64) * 0x9E3779B9 % 2**32)) >= threshold


def mixed(x):
    """MurmurHash3's finaliser, of Python's integers or of an array of 64 bits."""
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
