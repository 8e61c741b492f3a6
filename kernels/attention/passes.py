"""What the backends `triton` and `mosaic` share: the static facts of a kernel, and three kernels as one function.

A backend has a kernel for each pass of `blocks.Pass`: forward, gradient of the queries, gradients of keys and values.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jaxtyping import Array

from kernels.attention.blocks import PASSES, Blocks, Pass, blocks_for
from kernels.attention.contract import AttentionOutput, Request

LOG2_E = math.log2(math.e)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Call:
    """Everything static about one call of a kernel."""

    B: int
    T: int
    N: int
    K: int
    H: int
    scale: float  # of the scores, positive
    dropout_rate: float  # 0: the streams are not read
    blocks: Blocks
    interpret: Any  # how to run on a CPU, in Pallas' words; False or None to run on the GPU

    @property
    def group(self) -> int:
        """Query heads that share a key/value head."""
        return self.N // self.K

    @property
    def log2_scale(self) -> float:
        """Of scores in base 2."""
        return self.scale * LOG2_E

    @property
    def keep_rate(self) -> float:
        """The share of the probabilities that dropout keeps."""
        return 1.0 - self.dropout_rate

    @property
    def query_blocks(self) -> int:
        """Blocks of queries in a row, the last one possibly over its edge."""
        return pl.cdiv(self.T, self.blocks.block_q)

    @property
    def key_blocks(self) -> int:
        """Blocks of keys in a row, the last one possibly over its edge."""
        return pl.cdiv(self.T, self.blocks.block_k)


class Calls(NamedTuple):
    """Those of a request: one for each pass."""

    forward: Call
    dq: Call
    dkv: Call


class Inputs(NamedTuple):
    """What a call of attention is given."""

    q_BTNH: Array
    k_BTKH: Array
    v_BTKH: Array
    segment_ids_BT: Array
    streams_BN: Array | None


def calls_for(
    q_BTNH: Array,
    k_BTKH: Array,
    request: Request,
    *,
    backend: str,
    generation: str,
    blocks: dict[Pass, Blocks] | None,
    interpret: Any,
) -> Calls:
    """The calls for a request, with blocks of the table (`blocks_for`) for the passes that `blocks` leaves out."""
    (B, T, N, H), K, size = q_BTNH.shape, k_BTKH.shape[2], q_BTNH.dtype.itemsize
    rates = {"scale": float(request.scale), "dropout_rate": request.dropout_rate}
    chosen = [(blocks or {}).get(each) or blocks_for(backend, generation, size, H, each) for each in PASSES]
    return Calls(*(Call(B=B, T=T, N=N, K=K, H=H, **rates, blocks=each, interpret=interpret) for each in chosen))


def differentiable(
    forward: Callable[[Inputs, Call], tuple[Array, Array]],
    backward: Callable[[Inputs, AttentionOutput, AttentionOutput, Calls], tuple[Array, Array, Array]],
) -> Callable[..., AttentionOutput]:
    """A function of Inputs and Calls, with gradients for q, k and v.

    Args:
        forward: gives out_BTNH and log_z_BNT.
        backward: gives the gradients of q, k and v from the output and its cotangents.
    """

    @functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
    def attention(inputs, calls):
        return run(inputs, calls)[0]

    def run(inputs, calls):
        # Named, so that a rematerialisation policy can keep them and with them the whole forward pass.
        output = AttentionOutput(*(checkpoint_name(a, "attention") for a in forward(inputs, calls.forward)))
        return output, (inputs, output)

    def pull(calls, residuals, cotangents):
        return (Inputs(*backward(*residuals, cotangents, calls), None, None),)

    attention.defvjp(run, pull)
    return attention
