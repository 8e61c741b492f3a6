"""Attention and its gradients in NumPy float64 for whole rows at once, to measure errors on a GPU against."""

from collections.abc import Iterator
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from kernels.attention.dropout import keep
from kernels.workshop.cases import Case


class Results(NamedTuple):
    """Output, log Z and the gradients of q, k and v."""

    out: np.ndarray
    log_z: np.ndarray
    dq: np.ndarray
    dk: np.ndarray
    dv: np.ndarray


def in_float64(case: Case, q, k, v, d_out, d_log_z) -> Results:
    """Results of a case for q, k, v and the cotangents d_out [B, T, N, H] and d_log_z [B, N, T]; memory O(T^2)."""
    q, k, v, d_out, d_log_z = (np.asarray(a, np.float64) for a in (q, k, v, d_out, d_log_z))
    group, scale = case.num_heads // case.num_kv_heads, case.head_dim**-0.5
    request = case.request()
    visible_BTS = np.asarray(request.visible_BtS())
    out, log_z, dq, dk, dv = (np.zeros_like(a) for a in (q, d_log_z, q, k, v))
    for b, n in np.ndindex(case.batch, case.num_heads):
        row, keys = (b, slice(None), n), (b, slice(None), n // group)
        scores_TS = np.where(visible_BTS[b], scale * q[row] @ k[keys].T, -np.inf)
        largest_T = np.max(scores_TS, axis=-1, initial=-1e300)
        exponentials_TS = np.exp(scores_TS - largest_T[:, None])
        sums_T = exponentials_TS.sum(axis=-1)
        seen_T = sums_T > 0
        probs_TS = exponentials_TS / np.where(seen_T, sums_T, 1.0)[:, None]
        log_z[b, n] = np.where(seen_T, largest_T + np.log(np.where(seen_T, sums_T, 1.0)), 0.0)
        kept_TS = _kept_TS(case, b, n)
        out[row] = (probs_TS * kept_TS) @ v[keys]
        d_probs_TS = kept_TS * (d_out[row] @ v[keys].T)
        delta_T = np.sum(probs_TS * d_probs_TS, axis=-1) - d_log_z[b, n]
        d_scores_TS = scale * probs_TS * (d_probs_TS - delta_T[:, None])
        dq[row] = d_scores_TS @ k[keys]
        dk[keys] += d_scores_TS.T @ q[row]
        dv[keys] += (probs_TS * kept_TS).T @ d_out[row]
    return Results(out, log_z, dq, dk, dv)


def _kept_TS(case: Case, b: int, n: int) -> np.ndarray:
    """What dropout multiplies the probabilities of one row and head with."""
    if case.dropout is None:
        return np.ones((case.seq_len, case.seq_len))
    streams_BN = case.dropout.streams_BN(batch=case.batch, num_heads=case.num_heads)
    positions = jnp.arange(case.seq_len, dtype=jnp.int32)
    kept = keep(streams_BN[b, n], positions[:, None], positions[None, :], rate=case.dropout_rate)
    return np.asarray(kept, np.float64) / (1.0 - case.dropout_rate)


def relative_errors(actual: Results, truth: Results) -> Iterator[tuple[str, float]]:
    """Of each result by its name: the largest deviation, relative to the largest true value."""
    for name, a, t in zip(Results._fields, actual, truth, strict=True):
        yield name, float(np.max(np.abs(np.asarray(a, np.float64) - t)) / np.max(np.abs(t)))
