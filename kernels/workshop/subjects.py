"""What is measured: our attention backends and other people's kernels, under one signature."""

import dataclasses
import functools
import importlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array

from kernels import device
from kernels.attention import cudnn, tokamax_backend
from kernels.attention.api import attend
from kernels.workshop.cases import Case

OURS = ("mosaic", "triton", "xla_chunked", "xla")
KERNELS = ("mosaic", "triton", "jax_triton_sample", "jax_mosaic_sample", "tokamax_triton", "tokamax_mosaic")
"""What is made of kernels that the compiler can be asked about: cuDNN's are not, XLA's are dozens of plain matmuls."""


def jax_triton_sample(q_BTNH, k_BTKH, v_BTKH, segment_ids_BT, *, scale):
    """JAX's sample kernel in Pallas Triton, with its own block sizes. It repeats key/value heads."""
    module = importlib.import_module("jax.experimental.pallas.ops.gpu.attention")
    group = q_BTNH.shape[2] // k_BTKH.shape[2]
    k_BTNH, v_BTNH = (jnp.repeat(a, group, axis=2) for a in (k_BTKH, v_BTKH))
    return module.mha(q_BTNH, k_BTNH, v_BTNH, segment_ids_BT, sm_scale=scale, causal=True)


def jax_mosaic_sample(q_BTNH, k_BTKH, v_BTKH, segment_ids_BT, *, scale):
    """JAX's sample kernel in Pallas Mosaic for Hopper: causal, forward only, without segments or a scale.

    It takes float16: with bfloat16 it does not trace, for it casts the probabilities to float16.
    """
    if device.current_target(q_BTNH).major != 9:
        raise NotImplementedError("for Hopper only")
    module = importlib.import_module("jax.experimental.pallas.ops.gpu.attention_mgpu")
    config = module.TuningConfig(block_q=64, block_kv=128, max_concurrent_steps=2, causal=True)
    return module.attention(q_BTNH, k_BTKH, v_BTKH, config)


PEERS: dict[str, Callable[..., Array]] = {
    "jax_triton_sample": jax_triton_sample,
    "jax_mosaic_sample": jax_mosaic_sample,
    "tokamax_triton": functools.partial(tokamax_backend.library_attention, implementation="triton"),
    "tokamax_mosaic": functools.partial(tokamax_backend.library_attention, implementation="mosaic_gpu"),
    "cudnn": cudnn.library_attention,
}
"""Functions of q_BTNH, k_BTKH, v_BTKH, segment_ids_BT (None: one document a row) and scale -> out_BTNH."""

SUBJECTS = (*OURS, *PEERS)


@dataclasses.dataclass(frozen=True)
class Subject:
    """One of our backends, called as the model calls it, or a peer."""

    name: str

    @property
    def ours(self) -> bool:
        """Whether it is a backend of this project."""
        return self.name in OURS

    @property
    def dtype(self) -> jnp.dtype:
        """Of q, k and v."""
        return jnp.dtype(jnp.float16 if self.name == "jax_mosaic_sample" else jnp.bfloat16)

    def refuses(self, case: Case, *, backward: bool) -> str | None:
        """Why this subject cannot serve a case, as far as is known before a trace."""
        if not self.ours and case.dropout_rate:
            return "no dropout that can be compared"
        if self.name == "jax_mosaic_sample" and (backward or case.documents):
            return "causal forward pass only"
        return None

    def program(self, case: Case, *, backward: bool) -> Callable[..., tuple[Array, ...]]:
        """A function of q, k, v, segment ids and the output's gradient: the output, or with it the three gradients."""

        def serve(q_BTNH, k_BTKH, v_BTKH, segment_ids_BT):
            if self.ours:
                return attend(q_BTNH, k_BTKH, v_BTKH, case.request(segment_ids_BT), backend=self.name).out_BTNH
            ids_BT = segment_ids_BT if case.documents else None
            return PEERS[self.name](q_BTNH, k_BTKH, v_BTKH, ids_BT, scale=case.head_dim**-0.5)

        def run(q_BTNH, k_BTKH, v_BTKH, segment_ids_BT, d_out_BTNH):
            if not backward:
                return (serve(q_BTNH, k_BTKH, v_BTKH, segment_ids_BT),)
            out_BTNH, pull = jax.vjp(lambda q, k, v: serve(q, k, v, segment_ids_BT), q_BTNH, k_BTKH, v_BTKH)
            return (out_BTNH, *pull(d_out_BTNH))

        return run
