"""Backend `cudnn`: NVIDIA's own attention through `jax.nn`, for comparison; packed rows cost memory O(T^2).

cuDNN knows sequence lengths and, from Hopper on, offsets of packed sequences, but neither can say that two distant runs
of tokens are one segment, and ids are not known when the program is made. So segments are a mask here, which `jax.nn`
hands on as a bias of T x T for each row; only the causal half is skipped, blocks of other documents are not.
"""

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from kernels import device
from kernels.attention import xla_chunked
from kernels.attention.dropout import Dropout
from kernels.attention.reference import AttentionOutput

DTYPES = (jnp.bfloat16, jnp.float16)


def attention(
    q_BTNH: Float[Array, "B T N H"],
    k_BTKH: Float[Array, "B T K H"],
    v_BTKH: Float[Array, "B T K H"],
    *,
    segment_ids_BT: Int[Array, "B T"],
    scale: float,
    dropout_rate: float = 0.0,
    dropout: Dropout | None = None,
) -> AttentionOutput:
    """As `reference.attention`, up to rounding. `log_z_BNT` costs a second forward pass where it is used.

    Raises:
        NotImplementedError: cuDNN cannot serve this, or is not there; says why.
    """
    target = device.current_target(q_BTNH)
    if target.platform != "cuda" or target.major < 8:
        raise NotImplementedError(f"cuDNN attention needs an NVIDIA GPU from Ampere on, not {target.kind}")
    refuse_unsupported(q_BTNH, k_BTKH, v_BTKH, dropout_rate=dropout_rate, dropout=dropout, capability=target.major)
    try:
        out_BTNH = jax.nn.dot_product_attention(
            q_BTNH,
            k_BTKH,
            v_BTKH,
            mask=mask_B1TS(segment_ids_BT),
            is_causal=True,
            scale=scale,
            implementation="cudnn",
        )
    except RuntimeError as error:
        raise NotImplementedError(f"cuDNN: {error}") from error
    return with_log_z(out_BTNH, q_BTNH, k_BTKH, v_BTKH, segment_ids_BT, scale)


def refuse_unsupported(
    q_BTNH: Array, k_BTKH: Array, v_BTKH: Array, *, dropout_rate: float, dropout: Dropout | None, capability: int
) -> None:
    """Raises NotImplementedError for what cuDNN lacks or would do otherwise.

    Args:
        q_BTNH, k_BTKH, v_BTKH, dropout_rate, dropout: as for `attention`.
        capability: first number of the GPU's compute capability.
    """
    (_, T, _, H), dtype = q_BTNH.shape, q_BTNH.dtype
    if dtype not in DTYPES or k_BTKH.dtype != dtype or v_BTKH.dtype != dtype:
        raise NotImplementedError(f"cuDNN takes bfloat16 or float16, not {dtype}, {k_BTKH.dtype} and {v_BTKH.dtype}")
    largest = 128 if capability < 9 else 256
    if H % 8 or largest < H:
        raise NotImplementedError(f"cuDNN takes heads of a multiple of 8 up to {largest} on this GPU, not {H}")
    if T % 2:
        raise NotImplementedError(f"cuDNN differentiates masked attention over an even number of tokens only, not {T}")
    if dropout is not None and dropout_rate > 0.0:
        raise NotImplementedError("cuDNN draws dropout masks of its own, which no other backend can repeat")


def mask_B1TS(segment_ids_BT: Int[Array, "B T"]) -> Array:
    """True within a segment; padding counts as one more segment, so that no row is empty: see `with_log_z`."""
    return (segment_ids_BT[:, :, None] == segment_ids_BT[:, None, :])[:, None]


def with_log_z(
    out_BTNH: Array, q_BTNH: Array, k_BTKH: Array, v_BTKH: Array, segment_ids_BT: Array, scale: float
) -> AttentionOutput:
    """The contract's output from a library's that knows no padding and gives no log Z in float32.

    Padding has attended to padding: its rows become zeros here, and with them their gradients. log Z is that of
    `xla_chunked`: exact, differentiable, and removed by the compiler where nobody reads it.
    """
    out_BTNH = jnp.where((segment_ids_BT != 0)[:, :, None, None], out_BTNH, 0)
    log_z_BNT = xla_chunked.attention(q_BTNH, k_BTKH, v_BTKH, segment_ids_BT=segment_ids_BT, scale=scale).log_z_BNT
    return AttentionOutput(checkpoint_name(out_BTNH, "attention"), log_z_BNT)
