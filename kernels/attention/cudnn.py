"""Backend `cudnn`: NVIDIA's own attention through `jax.nn`, for comparison; packed rows cost memory O(T^2).

cuDNN takes sequence lengths and, from Hopper on, offsets of packed sequences. Neither can say that two distant runs of
tokens are one segment, and ids are not known when the program is made. So segments are a mask here, which `jax.nn`
hands on as a bias of T x T for each row. Only the causal half is skipped; blocks of other documents are computed.
"""

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from kernels import device
from kernels.attention import xla_chunked
from kernels.attention.contract import AttentionOutput, Request, check_dtypes


def attention(
    q_BTNH: Float[Array, "B T N H"], k_BTKH: Float[Array, "B T K H"], v_BTKH: Float[Array, "B T K H"], request: Request
) -> AttentionOutput:
    """As `reference.attention`, up to rounding. `log_z_BNT` costs a second forward pass where it is used.

    Raises NotImplementedError, with the reason, if cuDNN cannot serve this or is not there.
    """
    target = device.current_target(q_BTNH)
    if target.platform != "cuda" or target.major < 8:
        raise NotImplementedError(f"cuDNN attention needs an NVIDIA GPU from Ampere on, not {target.kind}")
    refuse_unsupported(q_BTNH, k_BTKH, v_BTKH, request, capability=target.major)
    out_BTNH = library_attention(q_BTNH, k_BTKH, v_BTKH, request.segment_ids_BT, scale=request.scale)
    return with_log_z(out_BTNH, q_BTNH, k_BTKH, v_BTKH, request)


def library_attention(
    q_BTNH: Array, k_BTKH: Array, v_BTKH: Array, segment_ids_BT: Int[Array, "B T"] | None, *, scale: float
) -> Float[Array, "B T N H"]:
    """The library's own call, causal within segments, or within the row if there are none.

    Padding counts as one more segment, so that no row is empty. Raises NotImplementedError where cuDNN is not there.
    """
    mask_B1TS = None
    if segment_ids_BT is not None:
        mask_B1TS = (segment_ids_BT[:, :, None] == segment_ids_BT[:, None, :])[:, None]
    try:
        return jax.nn.dot_product_attention(
            q_BTNH, k_BTKH, v_BTKH, mask=mask_B1TS, is_causal=True, scale=scale, implementation="cudnn"
        )
    except RuntimeError as error:
        raise NotImplementedError(f"cuDNN: {error}") from error


def refuse_unsupported(q_BTNH: Array, k_BTKH: Array, v_BTKH: Array, request: Request, *, capability: int) -> None:
    """Raises NotImplementedError for what cuDNN lacks or does otherwise on GPUs of this (major) compute capability."""
    check_dtypes(q_BTNH, k_BTKH, v_BTKH, expected=("bfloat16", "float16"))
    request.refuse_other_keys()
    _, T, _, H = q_BTNH.shape
    largest = 128 if capability < 9 else 256
    if H % 8 or largest < H:
        raise NotImplementedError(f"cuDNN takes heads of a multiple of 8 up to {largest} on this GPU, not {H}")
    if T % 2:
        raise NotImplementedError(f"cuDNN differentiates masked attention over an even number of tokens only, not {T}")
    if request.dropout is not None:
        raise NotImplementedError("cuDNN draws dropout masks of its own, which no other backend can repeat")


def with_log_z(out_BTNH: Array, q_BTNH: Array, k_BTKH: Array, v_BTKH: Array, request: Request) -> AttentionOutput:
    """The contract's output from that of a library that has no padding and gives no log Z in float32.

    Padding has attended to padding: its rows become zeros here, and with them their gradients. log Z is that of
    `xla_chunked`: exact, differentiable, and removed by the compiler where nobody reads it.
    """
    out_BTNH = jnp.where((request.segment_ids_BT != 0)[:, :, None, None], out_BTNH, 0)
    log_z_BNT = xla_chunked.attention(q_BTNH, k_BTKH, v_BTKH, request).log_z_BNT
    return AttentionOutput(checkpoint_name(out_BTNH, "attention"), log_z_BNT)
