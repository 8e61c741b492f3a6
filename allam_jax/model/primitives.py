"""What the network's modules are made of: products, parameters, dropout, norm, and what is kept for the backward pass.

Shapes as in `model/llama.py`.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array

REMAT_POLICIES = {
    # By name: left to itself JAX keeps the output projection's result as it comes out of the matmul, a whole copy on
    # every tensor device. (The attention backends name their own results.)
    "dots": jax.checkpoint_policies.save_only_these_names("attention", "projection"),
    "full": jax.checkpoint_policies.nothing_saveable,
}


FEW_ROWS = 64  # up to so many are multiplied the other way round, see `Turned`


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Turned:
    """A weight with its contracted axes last and joined, [..., I], in which CPUs multiply a few rows by it.

    The product is then that of the weight with the rows: its long side is the weight's, and no library transposes or
    packs a weight for a handful of rows. With 8 to 32 rows of float32 that takes 0.7 of the time.
    """

    array: Array

    def times(self, x_RI: Array) -> Array:
        """Returns [R, ...]: the product with each row."""
        matrix_OI = self.array.reshape(-1, x_RI.shape[1])
        out_OR = matrix_OI @ x_RI.T
        if len(x_RI) <= FEW_ROWS:
            out_OR = jax.lax.optimization_barrier(out_OR)  # or XLA turns the product back
        return out_OR.T.reshape(len(x_RI), *self.array.shape[:-1])


def turned(weight: Array, inputs: int) -> Turned:
    """A weight of which the first `inputs` axes are contracted."""
    matrix = weight.reshape(math.prod(weight.shape[:inputs]), -1)
    return Turned(matrix.T.reshape(*weight.shape[inputs:], -1))


def project(x: Array, weight: Array | Turned) -> Array:
    """Contracts all axes of `x` after [B, T] with the first ones of `weight`: [B, T, D] x [D, N, H] -> [B, T, N, H].

    On one device it is one matrix product with a row for each token. With B and T as two axes, the gradient contracts
    both of them, and XLA on CPU makes transposed copies of the activations for it: a tenth of a training step. On a
    mesh B and T stay two axes. If they were one, XLA could not scatter a sum of partial products by position, and every
    tensor device would reduce all of it.
    """
    B, T, *inner = x.shape
    if isinstance(weight, Turned):
        return weight.times(x.reshape(B * T, -1)).reshape(B, T, *weight.array.shape[:-1])
    mesh = jax.sharding.get_abstract_mesh()
    if not mesh.empty and mesh.size > 1:
        return jnp.tensordot(x, weight, axes=len(inner))
    matrix = weight.reshape(math.prod(inner), -1)
    return (x.reshape(B * T, -1) @ matrix).reshape(B, T, *weight.shape[len(inner) :])


def adapted(x: Array, weight: Array | Turned, adapters: dict[str, dict[str, Array]] | None, name: str) -> Array:
    """`project`, and what the low-rank adapter (`low_rank.py`) of this name adds, where there is one."""
    if not adapters or name not in adapters:
        return project(x, weight)
    adapter = adapters[name]
    added = project(project(x, adapter["a"]), adapter["b"])
    return project(x, weight) + adapter["factor"] * added


def kept(x: Array) -> Array:
    """Marks a matmul's result that `remat = "dots"` keeps for the backward pass."""
    return checkpoint_name(x, "projection")


def dropout(x: Array, *, rate: float, key: Array | None) -> Array:
    """Inverted dropout; returns `x` itself at rate 0 or without a key (evaluation)."""
    if rate == 0.0 or key is None:
        return x
    keep = jax.random.bernoulli(key, 1.0 - rate, x.shape)
    return jnp.where(keep, x / (1.0 - rate), jnp.zeros((), x.dtype))


def parameter(key: Array, shape: tuple[int, ...], axes: tuple[str, ...], std: float) -> nnx.Param:
    """A float32 parameter, normal with `std`; `axes` are the logical names of its dimensions."""
    return nnx.Param(std * jax.random.normal(key, shape, jnp.float32), axes=axes)


class RMSNorm(nnx.Module):
    """Root-mean-square norm, computed in float32."""

    def __init__(self, size: int, *, eps: float):
        self.eps = eps
        self.scale = nnx.Param(jnp.ones((size,), jnp.float32), axes=("norm",))

    def __call__(self, x: Array) -> Array:
        """Normalises the last axis, of the norm's size; the result has the input's dtype."""
        x_f32 = x.astype(jnp.float32)
        x_f32 = x_f32 * jax.lax.rsqrt(jnp.mean(jnp.square(x_f32), axis=-1, keepdims=True) + self.eps)
        return (x_f32 * self.scale[...]).astype(x.dtype)
