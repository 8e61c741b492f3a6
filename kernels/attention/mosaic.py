"""Backend `mosaic`: FlashAttention-3 style kernels in Pallas Mosaic GPU for Hopper (H100, H200).

Every matmul is a wgmma, forward and backward; TMA loads ahead, in a warpgroup of its own. Memory O(T). Blocks that
cannot interact are skipped, key/value heads are never repeated, results are the same bits in every run. The kernels are
in `mosaic_forward`, `mosaic_dq` and `mosaic_dkv`, what they share in `mosaic_parts`, block sizes in `blocks`.
"""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from kernels import device
from kernels.attention import mosaic_dkv, mosaic_dq, mosaic_forward, ranges
from kernels.attention import mosaic_parts as parts
from kernels.attention.blocks import Blocks, Pass
from kernels.attention.contract import AttentionOutput, Request, check_dtypes
from kernels.attention.passes import Call, Calls, Inputs, calls_for, differentiable


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

    Tests run the kernels on the CPU, with the parameters of a `simulator` (`workshop/mosaic_simulator`). Tuning and
    tests choose other `blocks` than those of the table. Raises NotImplementedError, with the reason, for what the
    kernels cannot serve.
    """
    B, _, N, H = q_BTNH.shape
    target = device.current_target(q_BTNH)
    if simulator is None and (target.platform != "cuda" or target.major != 9):
        raise NotImplementedError(f"Mosaic kernels use wgmma, which only Hopper has, not {target.kind}")
    check_dtypes(q_BTNH, k_BTKH, v_BTKH, expected=("bfloat16", "float16"))
    request.refuse_other_keys()
    if request.scale < parts.SMALLEST_SCALE:
        raise NotImplementedError(f"scale {request.scale} is not positive, or very small")
    if H > parts.LARGEST_HEAD_DIM:
        raise NotImplementedError(
            f"heads of {H}: a warpgroup's registers hold the sums of dK and dV for {parts.LARGEST_HEAD_DIM} at most"
        )
    parts.tile_width(H)  # raises for sizes that TMA cannot copy
    calls = calls_for(q_BTNH, k_BTKH, request, backend="mosaic", generation="sm90", blocks=blocks, interpret=simulator)
    for kernel_pass, call in calls._asdict().items():
        block_q, block_k, _, _ = call.blocks
        owned, streamed = (block_k, block_q) if kernel_pass == "dkv" else (block_q, block_k)
        if owned != parts.ROWS * parts.COMPUTE or streamed not in (64, 128):
            raise NotImplementedError(f"blocks of {owned} x {streamed} for {kernel_pass}: expected 128 x 64 or 128")
    streams_BN = request.streams_BN(N)
    streams_BN = jnp.zeros((B, N), jnp.uint32) if streams_BN is None else streams_BN
    return _attention(Inputs(q_BTNH, k_BTKH, v_BTKH, request.segment_ids_BT.astype(jnp.int32), streams_BN), calls)


def _forward(inputs: Inputs, call: Call) -> tuple[Array, Array]:
    ids_BT = inputs.segment_ids_BT
    padded = inputs._replace(segment_ids_BT=parts.padded_vectors(ids_BT))
    ranges_BI4 = parts.stacked(ranges.key_ranges(ids_BT, call.blocks))
    out_BTNH, log_z_BNT = mosaic_forward.forward(padded, ranges_BI4, call)
    return out_BTNH, log_z_BNT[..., : call.T]


def _backward(inputs: Inputs, output: AttentionOutput, cotangents: AttentionOutput, calls: Calls):
    ids_BT, d_out_BTNH = inputs.segment_ids_BT, cotangents.out_BTNH
    delta_BNT = jnp.einsum("BTNH,BTNH->BNT", output.out_BTNH, d_out_BTNH, preferred_element_type=jnp.float32)
    operands = parts.BackwardOperands(
        q=inputs.q_BTNH,
        k=inputs.k_BTKH,
        v=inputs.v_BTKH,
        d_out=d_out_BTNH,
        minus_log_z=parts.padded_vectors(output.log_z_BNT * (-1.0 / calls.dq.scale)),
        minus_delta=parts.padded_vectors(cotangents.log_z_BNT - delta_BNT),
        ids=parts.padded_vectors(ids_BT),
        ranges=parts.stacked(ranges.key_ranges(ids_BT, calls.dq.blocks)),
        streams=inputs.streams_BN,
    )
    d_q_BTNH = mosaic_dq.gradient(operands, calls.dq)
    query_ranges = parts.stacked(ranges.query_ranges(ids_BT, calls.dkv.blocks))
    d_k_BTKH, d_v_BTKH = mosaic_dkv.gradients(operands._replace(ranges=query_ranges), calls.dkv)
    return d_q_BTNH, d_k_BTKH, d_v_BTKH


_attention = differentiable(_forward, _backward)
