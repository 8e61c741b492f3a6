"""Rotary position embeddings (Su et al. 2021, 2104.09864), with Llama 3's scaling for long contexts."""

import math

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from allam_jax.model.llama_config import LlamaConfig

Rope = tuple[Array, Array]  # sin and cos, each [B, T, H/2]


def rope_of(positions_BT: Int[Array, "B T"], *, config: LlamaConfig, dtype: jnp.dtype) -> Rope:
    """Sines and cosines of every position's angles. The angles are float32; the results are cast to `dtype`."""
    angles_BTH = positions_BT.astype(jnp.float32)[:, :, None] * rope_frequencies(config)
    return jnp.sin(angles_BTH).astype(dtype), jnp.cos(angles_BTH).astype(dtype)


def rope_frequencies(config: LlamaConfig) -> Float[Array, " half_head"]:
    """Angular frequencies in radians per position, float32, with Llama 3's scaling if its factor is not 1.

    Scaling divides the frequencies of wavelengths above `original_max_position / low_freq_factor` by the factor. It
    keeps those of wavelengths below `original_max_position / high_freq_factor` and interpolates between.
    """
    half = jnp.arange(0, config.head_dim, 2, dtype=jnp.float32)
    frequencies = 1.0 / (config.rope_theta ** (half / config.head_dim))
    if config.rope_scaling_factor == 1.0:
        return frequencies
    low, high = config.rope_low_freq_factor, config.rope_high_freq_factor
    wavelengths = 2 * math.pi / frequencies
    kept = (config.rope_original_max_position / wavelengths - low) / (high - low)
    kept = jnp.clip(kept, 0.0, 1.0)
    return frequencies * (kept + (1 - kept) / config.rope_scaling_factor)


def rotate(x_BTNH: Array, rope: Rope) -> Array:
    """Rotates the pairs (i, i + H/2) of every head. This is Hugging Face's half-split layout."""
    first, second = jnp.split(x_BTNH, 2, axis=-1)
    sin, cos = (each_BTH[:, :, None, :] for each_BTH in rope)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
