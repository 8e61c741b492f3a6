"""Backend `triton`: FlashAttention-2 in Pallas Triton for A100 and H100 (and, untuned, what is newer).

Memory O(T). Blocks that cannot interact are skipped, key/value heads are never repeated, results are the same bits in
every run. The kernels are in `triton_forward` and `triton_backward`, block sizes in `blocks`.
"""

import functools

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jaxtyping import Array, Float

from kernels import device
from kernels.attention import triton_backward, triton_forward
from kernels.attention.blocks import LARGEST_HEAD_DIM, Blocks, Pass, blocks_for
from kernels.attention.contract import AttentionOutput, Request
from kernels.attention.triton_tiles import Call

DTYPES = (jnp.bfloat16, jnp.float16, jnp.float32)
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

    Args:
        q_BTNH, k_BTKH, v_BTKH, request: see `contract`.
        interpret: run the kernels on the CPU, for tests.
        blocks: other blocks than those of the table, for tuning and tests.

    Raises:
        NotImplementedError: the kernels cannot serve this; says why.
    """
    (B, T, N, H), K = q_BTNH.shape, k_BTKH.shape[2]
    dtype, dropout = q_BTNH.dtype, request.dropout
    if dtype not in DTYPES or k_BTKH.dtype != dtype or v_BTKH.dtype != dtype:
        raise NotImplementedError(
            f"q, k and v are {dtype}, {k_BTKH.dtype} and {v_BTKH.dtype}; expected one of bfloat16, float16, float32"
        )
    if H > LARGEST_HEAD_DIM:
        raise NotImplementedError(f"heads of {H} are larger than {LARGEST_HEAD_DIM}")
    if request.scale <= 0.0:
        raise NotImplementedError(f"scale {request.scale} is not positive")
    generation = _generation(q_BTNH, interpret=interpret)
    calls = []
    for kernel_pass in ("forward", "dq", "dkv"):
        chosen = (blocks or {}).get(kernel_pass) or blocks_for("triton", generation, dtype.itemsize, H, kernel_pass)
        calls.append(
            Call(
                B=B,
                T=T,
                N=N,
                K=K,
                H=H,
                scale=float(request.scale),
                dropout_rate=0.0 if dropout is None else float(dropout.rate),
                blocks=_no_longer_than(chosen, T),
                interpret=interpret,
            )
        )
    streams_BN = None if dropout is None else dropout.streams_BN(batch=B, num_heads=N)
    return AttentionOutput(*_attention(q_BTNH, k_BTKH, v_BTKH, request.segment_ids_BT, streams_BN, *calls))


def _generation(q_BTNH: Array, *, interpret: bool) -> str:
    target = device.current_target(q_BTNH)
    if not interpret and (target.platform != "cuda" or 0 < target.major < 8):
        raise NotImplementedError(f"Triton kernels need an NVIDIA GPU from Ampere on, not {target.kind}")
    return target.capability or OLDEST


def _no_longer_than(blocks: Blocks, T: int) -> Blocks:
    """Smaller blocks for short rows."""
    longest = max(SMALLEST_BLOCK, pl.next_power_of_2(T))
    return blocks._replace(block_q=min(blocks.block_q, longest), block_k=min(blocks.block_k, longest))


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6, 7))
def _attention(q_BTNH, k_BTKH, v_BTKH, segment_ids_BT, streams_BN, forward: Call, dq: Call, dkv: Call):
    return _forward(q_BTNH, k_BTKH, v_BTKH, segment_ids_BT, streams_BN, forward, dq, dkv)[0]


def _forward(q_BTNH, k_BTKH, v_BTKH, segment_ids_BT, streams_BN, forward, dq, dkv):
    out_BTNH, log_z_BNT = triton_forward.forward(q_BTNH, k_BTKH, v_BTKH, segment_ids_BT, streams_BN, forward)
    # Named, so that a rematerialisation policy can keep them and with them the whole forward pass.
    out_BTNH, log_z_BNT = checkpoint_name(out_BTNH, "attention"), checkpoint_name(log_z_BNT, "attention")
    return (out_BTNH, log_z_BNT), (q_BTNH, k_BTKH, v_BTKH, segment_ids_BT, streams_BN, out_BTNH, log_z_BNT)


def _backward(forward, dq, dkv, residuals, cotangents):
    q_BTNH, k_BTKH, v_BTKH, segment_ids_BT, streams_BN, out_BTNH, log_z_BNT = residuals
    d_out_BTNH, d_log_z_BNT = cotangents
    inputs = (q_BTNH, k_BTKH, v_BTKH, segment_ids_BT, streams_BN)
    d_q_BTNH, delta_BNT = triton_backward.d_queries(inputs, out_BTNH, log_z_BNT, d_out_BTNH, d_log_z_BNT, dq)
    d_k_BTKH, d_v_BTKH = triton_backward.d_keys(inputs, log_z_BNT, delta_BNT, d_out_BTNH, dkv)
    return d_q_BTNH, d_k_BTKH, d_v_BTKH, None, None


_attention.defvjp(_forward, _backward)
