"""Backend `mosaic`: FlashAttention-3 style kernels in Pallas Mosaic GPU for Hopper (H100, H200).

Every matmul is a wgmma, forward and backward; TMA loads ahead, in a warpgroup of its own. Memory O(T). Blocks that
cannot interact are skipped, key/value heads are never repeated, results are the same bits in every run. The kernels are
in `mosaic_forward`, `mosaic_dq` and `mosaic_dkv`, what they share in `mosaic_parts`, block sizes in `blocks`.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from kernels import device
from kernels.attention import mosaic_dkv, mosaic_dq, mosaic_forward, ranges
from kernels.attention import mosaic_parts as parts
from kernels.attention.blocks import Blocks, Pass, blocks_for
from kernels.attention.contract import AttentionOutput, Request
from kernels.attention.mosaic_parts import Call

DTYPES = (jnp.bfloat16, jnp.float16)


def attention(
    q_BTNH: Float[Array, "B T N H"],
    k_BTKH: Float[Array, "B T K H"],
    v_BTKH: Float[Array, "B T K H"],
    request: Request,
    *,
    simulator: Any = None,
    blocks: dict[Pass, Blocks] | None = None,
) -> AttentionOutput:
    """As `reference.attention`, up to rounding; differentiable in q, k and v by both outputs.

    Args:
        q_BTNH, k_BTKH, v_BTKH, request: see `contract`.
        simulator: parameters of a simulator that runs the kernels on the CPU, for tests (`workshop/mosaic_simulator`).
        blocks: other blocks than those of the table, for tuning and tests.

    Raises:
        NotImplementedError: the kernels cannot serve this; says why.
    """
    (B, _, N, H), dtype, dropout = q_BTNH.shape, q_BTNH.dtype, request.dropout
    target = device.current_target(q_BTNH)
    if simulator is None and (target.platform != "cuda" or target.major != 9):
        raise NotImplementedError(f"Mosaic kernels use wgmma, which only Hopper has, not {target.kind}")
    if dtype not in DTYPES or k_BTKH.dtype != dtype or v_BTKH.dtype != dtype:
        raise NotImplementedError(
            f"q, k and v are {dtype}, {k_BTKH.dtype} and {v_BTKH.dtype}; wgmma takes bfloat16 or float16"
        )
    if request.scale < parts.SMALLEST_SCALE:
        raise NotImplementedError(f"scale {request.scale} is not positive, or very small")
    if H > parts.LARGEST_HEAD_DIM:
        raise NotImplementedError(
            f"heads of {H}: a warpgroup's registers hold the sums of dK and dV for {parts.LARGEST_HEAD_DIM} at most"
        )
    parts.tile_width(H)  # raises for sizes that TMA cannot copy
    calls = []
    for kernel_pass in ("forward", "dq", "dkv"):
        chosen = (blocks or {}).get(kernel_pass) or blocks_for("mosaic", "sm90", dtype.itemsize, H, kernel_pass)
        owned, streamed = (chosen.block_k, chosen.block_q) if kernel_pass == "dkv" else (chosen.block_q, chosen.block_k)
        if owned != parts.ROWS * parts.COMPUTE or streamed not in (64, 128):
            raise NotImplementedError(f"blocks of {owned} x {streamed} for {kernel_pass}: expected 128 x 64 or 128")
        rate = 0.0 if dropout is None else float(dropout.rate)
        calls.append(Call(float(request.scale), rate, chosen, simulator))
    no_streams_BN = jnp.zeros((B, N), jnp.uint32)
    streams_BN = no_streams_BN if dropout is None else dropout.streams_BN(batch=B, num_heads=N)
    ids_BT = request.segment_ids_BT.astype(jnp.int32)
    return AttentionOutput(*_attention(q_BTNH, k_BTKH, v_BTKH, ids_BT, streams_BN, *calls))


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6, 7))
def _attention(q_BTNH, k_BTKH, v_BTKH, segment_ids_BT, streams_BN, forward: Call, dq: Call, dkv: Call):
    return _forward(q_BTNH, k_BTKH, v_BTKH, segment_ids_BT, streams_BN, forward, dq, dkv)[0]


def _forward(q_BTNH, k_BTKH, v_BTKH, segment_ids_BT, streams_BN, forward, dq, dkv):
    T = q_BTNH.shape[1]
    out_BTNH, log_z_BNT = mosaic_forward.forward(
        q_BTNH,
        k_BTKH,
        v_BTKH,
        parts.padded_vectors(segment_ids_BT),
        parts.stacked(ranges.key_ranges(segment_ids_BT, **_sizes(forward))),
        streams_BN,
        forward,
    )
    # Named, so that a rematerialisation policy can keep them and with them the whole forward pass.
    out_BTNH, log_z_BNT = checkpoint_name(out_BTNH, "attention"), checkpoint_name(log_z_BNT[..., :T], "attention")
    return (out_BTNH, log_z_BNT), (q_BTNH, k_BTKH, v_BTKH, segment_ids_BT, streams_BN, out_BTNH, log_z_BNT)


def _backward(forward, dq, dkv, residuals, cotangents):
    q_BTNH, k_BTKH, v_BTKH, segment_ids_BT, streams_BN, out_BTNH, log_z_BNT = residuals
    d_out_BTNH, d_log_z_BNT = cotangents
    delta_BNT = jnp.einsum("BTNH,BTNH->BNT", out_BTNH, d_out_BTNH, preferred_element_type=jnp.float32)
    operands = parts.BackwardOperands(
        q=q_BTNH,
        k=k_BTKH,
        v=v_BTKH,
        d_out=d_out_BTNH,
        minus_log_z=parts.padded_vectors(log_z_BNT * (-1.0 / dq.scale)),
        minus_delta=parts.padded_vectors(d_log_z_BNT - delta_BNT),
        ids=parts.padded_vectors(segment_ids_BT),
        ranges=parts.stacked(ranges.key_ranges(segment_ids_BT, **_sizes(dq))),
        streams=streams_BN,
    )
    d_q_BTNH = mosaic_dq.gradient(operands, dq)
    query_ranges = parts.stacked(ranges.query_ranges(segment_ids_BT, **_sizes(dkv)))
    d_k_BTKH, d_v_BTKH = mosaic_dkv.gradients(operands._replace(ranges=query_ranges), dkv)
    return d_q_BTNH, d_k_BTKH, d_v_BTKH, None, None


_attention.defvjp(_forward, _backward)


def _sizes(call: Call) -> dict[str, int]:
    return {"block_q": call.blocks.block_q, "block_k": call.blocks.block_k}
