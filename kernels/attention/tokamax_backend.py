"""Backend `tokamax`: the attention of the tokamax package, where it is installed, for comparison.

Its operation takes a range of keys for each query (`Mask.k_start`), which its public function does not offer, so it is
called below that function. With it both forward kernels skip the blocks of other documents. Of the backward kernels,
Mosaic's masks by the range but computes the whole causal half, and Triton's makes a mask of T x T of it.
"""

import importlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from absl import flags
from jaxtyping import Array, Float, Int

from kernels import device
from kernels.attention.contract import AttentionOutput, Request
from kernels.attention.cudnn import with_log_z

GPU_IMPLEMENTATIONS = ("mosaic_gpu", "triton")


def attention(
    q_BTNH: Float[Array, "B T N H"],
    k_BTKH: Float[Array, "B T K H"],
    v_BTKH: Float[Array, "B T K H"],
    request: Request,
    *,
    implementations: Sequence[str] = GPU_IMPLEMENTATIONS,
) -> AttentionOutput:
    """As `reference.attention`, up to rounding. Each segment must lie in one piece: its id appears in one run only.

    `log_z_BNT` costs a second forward pass where it is used. tokamax's `implementations` are tried in this order.
    Raises NotImplementedError, with the reason, if tokamax is not installed or none of them serves this.
    """
    target = device.current_target(q_BTNH)
    _operations()
    if set(implementations) & set(GPU_IMPLEMENTATIONS) and (target.platform != "cuda" or target.major < 8):
        raise NotImplementedError(f"tokamax's kernels need an NVIDIA GPU from Ampere on, not {target.kind}")
    request.refuse_other_keys()
    if request.dropout is not None:
        raise NotImplementedError("tokamax takes dropout as a stored mask of T x T for each head")
    reasons = []
    for name in implementations:
        try:
            out_BTNH = library_attention(
                q_BTNH, k_BTKH, v_BTKH, request.segment_ids_BT, scale=request.scale, implementation=name
            )
        except NotImplementedError as error:
            reasons.append(f"{name}: {error}")
            continue
        return with_log_z(out_BTNH, q_BTNH, k_BTKH, v_BTKH, request)
    raise NotImplementedError(f"tokamax: {'; '.join(reasons)}")


def library_attention(
    q_BTNH: Array,
    k_BTKH: Array,
    v_BTKH: Array,
    segment_ids_BT: Int[Array, "B T"] | None,
    *,
    scale: float,
    implementation: str,
) -> Float[Array, "B T N H"]:
    """The library's own operation: causal within runs of equal ids, padding's too, or within the row without ids.

    Raises NotImplementedError: tokamax is not installed, or this implementation does not serve the request.
    """
    operations, make_mask = _operations()
    k_start_B1T = None if segment_ids_BT is None else run_starts_BT(segment_ids_BT)[:, None]
    mask = make_mask(k_start=k_start_B1T, is_causal=True)
    return operations[implementation](q_BTNH, k_BTKH, v_BTKH, mask=mask, logits_scale=scale)


def run_starts_BT(segment_ids_BT: Int[Array, "B T"]) -> Int[Array, "B T"]:
    """Where the run of equal ids that each position lies in starts."""
    new_BT = jnp.diff(segment_ids_BT, axis=1, prepend=segment_ids_BT[:, :1]) != 0
    starts_BT = jnp.where(new_BT, jnp.arange(segment_ids_BT.shape[1], dtype=jnp.int32), 0)
    return jax.lax.cummax(starts_BT, axis=1)


def _operations() -> tuple[Any, Any]:
    """tokamax's attention operations by name, and its `Mask`; NotImplementedError where they are not installed."""
    try:
        api = importlib.import_module("tokamax._src.ops.attention.api")
        base = importlib.import_module("tokamax._src.ops.attention.base")
    except ImportError as error:
        raise NotImplementedError("tokamax is not installed: pip install tokamax==0.0.12") from error
    if not flags.FLAGS.is_parsed():  # left to itself tokamax reads the command line as flags of its own
        flags.FLAGS(["tokamax"])
    return api.IMPLEMENTATIONS, base.Mask
