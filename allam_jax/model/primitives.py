"""What the network's modules are made of: parameters, dropout, norm, and what is kept for the backward pass."""

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
