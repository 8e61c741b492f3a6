"""Backend `triton`: FlashAttention-2 in Pallas Triton for A100 and H100 (and, untuned, what is newer).

Memory O(T). Blocks that cannot interact are skipped, key/value heads are never repeated, results are the same bits in
every run. The kernels are in `triton_forward` and `triton_backward`, block sizes in `blocks`.
"""

import dataclasses

from jax.experimental import pallas as pl
from jaxtyping import Array, Float

from kernels import device
from kernels.attention import triton_backward, triton_forward
from kernels.attention.blocks import LARGEST_HEAD_DIM, Blocks, Pass
from kernels.attention.contract import AttentionOutput, Request, check_dtypes
from kernels.attention.passes import Calls, Inputs, calls_for, differentiable

SMALLEST_BLOCK = 16  # that tensor cores take
OLDEST = "sm80"  # for a GPU whose capability is not known, and for interpret mode


def attention(
    q_BTNH: Float[Array, "B T N H"],
    k_BTKH: Float[Array, "B T K H"],
    v_BTKH: Float[Array, "B T K H"],
    request: Request,
    *,
    interpret: bool = False,
    blocks: dict[Pass, Blocks] | None = None,
) -> AttentionOutput:
    """As `reference.attention`, up to rounding; differentiable in q, k and v by both outputs.

    Tests run the kernels on the CPU (`interpret`). Tuning and tests choose other `blocks` than those of the table.
    Raises NotImplementedError, with the reason, for what the kernels cannot serve.
    """
    check_dtypes(q_BTNH, k_BTKH, v_BTKH, expected=("bfloat16", "float16", "float32"))
    request.refuse_other_keys()
    _, T, N, H = q_BTNH.shape
    if H > LARGEST_HEAD_DIM:
        raise NotImplementedError(f"heads of {H} are larger than {LARGEST_HEAD_DIM}")
    if request.scale <= 0.0:
        raise NotImplementedError(f"scale {request.scale} is not positive")
    generation = _generation(q_BTNH, interpret=interpret)
    calls = calls_for(
        q_BTNH, k_BTKH, request, backend="triton", generation=generation, blocks=blocks, interpret=interpret
    )
    calls = Calls(*(dataclasses.replace(call, blocks=_no_longer_than(call.blocks, T)) for call in calls))
    return _attention(Inputs(q_BTNH, k_BTKH, v_BTKH, request.segment_ids_BT, request.streams_BN(N)), calls)


def _generation(q_BTNH: Array, *, interpret: bool) -> str:
    target = device.current_target(q_BTNH)
    if not interpret and (target.platform != "cuda" or 0 < target.major < 8):
        raise NotImplementedError(f"Triton kernels need an NVIDIA GPU from Ampere on, not {target.kind}")
    return target.capability or OLDEST


def _no_longer_than(blocks: Blocks, T: int) -> Blocks:
    """Smaller blocks for short rows."""
    longest = max(SMALLEST_BLOCK, pl.next_power_of_2(T))
    return blocks._replace(block_q=min(blocks.block_q, longest), block_k=min(blocks.block_k, longest))


def _backward(inputs: Inputs, output: AttentionOutput, cotangents: AttentionOutput, calls: Calls):
    d_q_BTNH, delta_BNT = triton_backward.d_queries(inputs, output, cotangents, calls.dq)
    d_k_BTKH, d_v_BTKH = triton_backward.d_keys(inputs, output.log_z_BNT, delta_BNT, cotangents.out_BTNH, calls.dkv)
    return d_q_BTNH, d_k_BTKH, d_v_BTKH


_attention = differentiable(triton_forward.forward, _backward)
