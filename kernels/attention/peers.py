"""Other people's attention kernels under one signature, to be compared with ours. None of them is used in training."""

import importlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array

from kernels import device
from kernels.attention import tokamax_backend
from kernels.attention.cudnn import mask_B1TS

Call = Callable[[Array, Array, Array, Array | None], Array]
"""q_BTNH, k_BTKH, v_BTKH, segment_ids_BT (None: one document a row) -> out_BTNH."""


def jax_triton_sample(q_BTNH, k_BTKH, v_BTKH, segment_ids_BT):
    """JAX's sample kernel in Pallas Triton, with its own block sizes. It repeats key/value heads."""
    module = importlib.import_module("jax.experimental.pallas.ops.gpu.attention")
    group = q_BTNH.shape[2] // k_BTKH.shape[2]
    k_BTNH, v_BTNH = (jnp.repeat(a, group, axis=2) for a in (k_BTKH, v_BTKH))
    return module.mha(q_BTNH, k_BTNH, v_BTNH, segment_ids_BT, sm_scale=q_BTNH.shape[-1] ** -0.5, causal=True)


def jax_mosaic_sample(q_BTNH, k_BTKH, v_BTKH, segment_ids_BT):
    """JAX's sample kernel in Pallas Mosaic for Hopper: causal, forward only, without segments.

    It takes float16: with bfloat16 it does not trace, for it casts the probabilities to float16. It knows no scale.
    """
    if device.current_target(q_BTNH).major != 9:
        raise NotImplementedError("for Hopper only")
    module = importlib.import_module("jax.experimental.pallas.ops.gpu.attention_mgpu")
    config = module.TuningConfig(block_q=64, block_kv=128, max_concurrent_steps=2, causal=True)
    return module.attention(q_BTNH, k_BTKH, v_BTKH, config)


def _tokamax(implementation: str) -> Call:
    def call(q_BTNH, k_BTKH, v_BTKH, segment_ids_BT):
        tokamax = tokamax_backend.package()
        mask = None if segment_ids_BT is None else mask_B1TS(segment_ids_BT)
        return tokamax.dot_product_attention(
            q_BTNH, k_BTKH, v_BTKH, mask=mask, is_causal=True, implementation=implementation
        )

    return call


def cudnn(q_BTNH, k_BTKH, v_BTKH, segment_ids_BT):
    """cuDNN through `jax.nn`, segments as a stored mask."""
    mask = None if segment_ids_BT is None else mask_B1TS(segment_ids_BT)
    try:
        return jax.nn.dot_product_attention(q_BTNH, k_BTKH, v_BTKH, mask=mask, is_causal=True, implementation="cudnn")
    except RuntimeError as error:
        raise NotImplementedError(f"cuDNN: {error}") from error


PEERS: dict[str, Call] = {
    "jax_triton_sample": jax_triton_sample,
    "jax_mosaic_sample": jax_mosaic_sample,
    "tokamax_triton": _tokamax("triton"),
    "tokamax_mosaic": _tokamax("mosaic"),
    "cudnn_causal": cudnn,
}
