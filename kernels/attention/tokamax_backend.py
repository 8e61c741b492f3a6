"""Backend `tokamax`: the attention of the tokamax package, where it is installed, for comparison.

Its public function takes segments as a stored mask of T x T for each row; blocks of other documents are not skipped.
"""

import importlib
import types
from collections.abc import Sequence

from absl import flags
from jaxtyping import Array, Float, Int

from kernels import device
from kernels.attention.cudnn import mask_B1TS, with_log_z
from kernels.attention.dropout import Dropout
from kernels.attention.reference import AttentionOutput

GPU_IMPLEMENTATIONS = ("mosaic", "triton")


def attention(
    q_BTNH: Float[Array, "B T N H"],
    k_BTKH: Float[Array, "B T K H"],
    v_BTKH: Float[Array, "B T K H"],
    *,
    segment_ids_BT: Int[Array, "B T"],
    scale: float,
    dropout_rate: float = 0.0,
    dropout: Dropout | None = None,
    implementation: Sequence[str] = GPU_IMPLEMENTATIONS,
) -> AttentionOutput:
    """As `reference.attention`, up to rounding. `log_z_BNT` costs a second forward pass where it is used.

    Args:
        q_BTNH, k_BTKH, v_BTKH, segment_ids_BT, scale, dropout_rate, dropout: see `reference.attention`.
        implementation: tokamax's names, tried in this order.

    Raises:
        NotImplementedError: tokamax is not installed, or none of its implementations serves this; says why.
    """
    tokamax = package()
    target = device.current_target(q_BTNH)
    if set(implementation) & set(GPU_IMPLEMENTATIONS) and (target.platform != "cuda" or target.major < 8):
        raise NotImplementedError(f"tokamax's kernels need an NVIDIA GPU from Ampere on, not {target.kind}")
    if dropout is not None and dropout_rate > 0.0:
        raise NotImplementedError("tokamax takes dropout as a stored mask of T x T for each head")
    try:
        out_BTNH = tokamax.dot_product_attention(
            q_BTNH,
            k_BTKH,
            v_BTKH,
            mask=mask_B1TS(segment_ids_BT),
            is_causal=True,
            scale=scale,
            implementation=tuple(implementation),
        )
    except ExceptionGroup as group:  # of the NotImplementedErrors of all it has tried
        raise NotImplementedError(f"tokamax: {'; '.join(map(str, group.exceptions))}") from group
    return with_log_z(out_BTNH, q_BTNH, k_BTKH, v_BTKH, segment_ids_BT, scale)


def package() -> types.ModuleType:
    """The tokamax package. Raises NotImplementedError where it is not installed."""
    try:
        module = importlib.import_module("tokamax")
    except ImportError as error:
        raise NotImplementedError("tokamax is not installed: pip install tokamax") from error
    if not flags.FLAGS.is_parsed():  # left to itself it reads the command line as flags of its own
        flags.FLAGS(["tokamax"])
    return module
