"""Attention for callers: checks the request, picks a backend, and says once which one and why."""

import functools
import importlib

from absl import logging
from jaxtyping import Array, Float, Int

from kernels import device
from kernels.attention.backends import BACKENDS, ELSEWHERE, MODULES, ON_CUDA
from kernels.attention.contract import AttentionOutput, Request
from kernels.attention.dropout import Dropout
from kernels.attention.sharded import WHOLE, Partition, over_mesh


def attention(
    q_BTNH: Float[Array, "B T N H"],
    k_BTKH: Float[Array, "B T K H"],
    v_BTKH: Float[Array, "B T K H"],
    *,
    segment_ids_BT: Int[Array, "B T"],
    scale: float | None = None,
    dropout_rate: float = 0.0,
    dropout_key: Array | None = None,
    backend: str = "auto",
    partition: Partition = WHOLE,
) -> Float[Array, "B T N H"]:
    """Causal attention within segments.

    Query t of row b sees the keys s <= t with `segment_ids_BT[b, s] == segment_ids_BT[b, t] != 0`. Query head n reads
    key/value head n // (N / K). The softmax is computed in float32; a query that sees nothing gives zeros.

    Args:
        segment_ids_BT: 0 for padding, equal numbers for the tokens of one document.
        scale: of the scores before the softmax; H ** -0.5 by default.
        dropout_rate: share of the probabilities that are dropped; needs `dropout_key`.
        dropout_key: a JAX random key. The mask depends on it and on the place in the batch, not on backend or mesh.
        backend, partition: as in `attend`.

    Raises:
        ValueError, NotImplementedError: as `attend`; and ValueError for dropout without a key.
    """
    if not 0.0 <= dropout_rate < 1.0:
        raise ValueError(f"attention: dropout rate {dropout_rate} is outside [0, 1)")
    if dropout_rate > 0.0 and dropout_key is None:
        raise ValueError("attention: dropout needs a dropout_key")
    request = Request(
        segment_ids_BT=segment_ids_BT,
        scale=q_BTNH.shape[-1] ** -0.5 if scale is None else scale,
        dropout=Dropout.from_key(dropout_key, rate=dropout_rate) if dropout_key is not None and dropout_rate else None,
    )
    return attend(q_BTNH, k_BTKH, v_BTKH, request, backend=backend, partition=partition).out_BTNH


def attend(
    q_BTNH: Float[Array, "B T N H"],
    k_BTKH: Float[Array, "B T K H"],
    v_BTKH: Float[Array, "B T K H"],
    request: Request,
    *,
    backend: str = "auto",
    partition: Partition = WHOLE,
) -> AttentionOutput:
    """The output of a request, and the log of each softmax's denominator.

    `backend` is one of `BACKENDS`. `partition` says how the arguments lie on the surrounding mesh; each device then
    works on its own shard. N is a multiple of K.

    Raises:
        ValueError: shapes that do not fit, or an unknown backend.
        NotImplementedError: the named backend cannot serve this request; says why.
    """
    _check_shapes(q_BTNH, k_BTKH, v_BTKH, request)
    if backend not in BACKENDS:
        raise ValueError(f"attention backend {backend!r} is unknown; expected one of {', '.join(BACKENDS)}")
    target = device.current_target(q_BTNH)
    order = ON_CUDA if target.platform == "cuda" else ELSEWHERE
    reasons = []
    for name in order if backend == "auto" else (backend,):
        serve = importlib.import_module(MODULES[name]).attention
        try:
            output = over_mesh(serve, q_BTNH, k_BTKH, v_BTKH, request, partition=partition)
        except NotImplementedError as error:
            reasons.append(f"{name}: {error}")
            continue
        _say_once(name, "asked for" if backend == name else "; ".join(reasons) or f"first choice on {target.kind}")
        return output
    raise NotImplementedError(f"no attention backend can serve this: {'; '.join(reasons)}")


def _check_shapes(q_BTNH: Array, k_BTKH: Array, v_BTKH: Array, request: Request) -> None:
    if q_BTNH.ndim != 4 or k_BTKH.ndim != 4 or k_BTKH.shape != v_BTKH.shape:
        raise ValueError(f"attention: q {q_BTNH.shape}, k {k_BTKH.shape}, v {v_BTKH.shape}; expected [B, T, N|K, H]")
    B, T, N, H = q_BTNH.shape
    K = k_BTKH.shape[2]
    S, places = T, {"segment ids": (request.segment_ids_BT, T)}
    if (request.keys is None) != (request.positions_BT is None):
        raise ValueError("attention: places of keys need positions of the queries, and the other way round")
    if request.keys is not None and request.positions_BT is not None:
        if request.dropout is not None:
            raise ValueError("attention: dropout is for training, where queries and keys are of the same tokens")
        S = k_BTKH.shape[1]
        places |= {"positions": (request.positions_BT, T)}
        places |= {"key segment ids": (request.keys.segment_ids, S), "key positions": (request.keys.positions, S)}
    wrong = [f"{name} {array.shape}" for name, (array, length) in places.items() if array.shape != (B, length)]
    if k_BTKH.shape != (B, S, K, H) or wrong:
        raise ValueError(
            f"attention: q {q_BTNH.shape}, k {k_BTKH.shape} and {', '.join(wrong) or 'segment ids'} "
            "differ in batch, sequence or head size"
        )
    if N % K:
        raise ValueError(f"attention: {N} query heads are not a multiple of {K} key/value heads")


@functools.cache
def _say_once(backend: str, reason: str) -> None:
    logging.info("attention backend: %s (%s)", backend, reason)
