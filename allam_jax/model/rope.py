"""Rotary position embeddings (Su et al. 2021, 2104.09864), and how they are scaled for longer contexts.

Each scaling changes the angular frequency of pair i of a head of H values, which is theta^(-2i/H) without one. With
the factor s and the turns r_i that pair i makes within the original context:

    linear   f_i / s                                                          (Chen et al. 2023, 2306.15595)
    llama3   f_i if r_i > high, f_i / s if r_i < low, interpolated in r_i     (Llama 3, 2407.21783)
    yarn     f_i if r_i > beta_fast, f_i / s if r_i < beta_slow, interpolated in i; sines and cosines are multiplied
             by 0.1 ln(s) + 1, so that attention keeps its entropy            (Peng et al. 2023, 2309.00071)
    dynamic  theta grows with the document, from the length `max_position` on (NTK-aware: u/emozilla 2023)

All of them are those of transformers (modeling_rope_utils.py). A scaling is chosen by its name and factor, never by
the length of a batch.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from allam_jax.model.llama_config import LlamaConfig

Rope = tuple[Array, Array]  # sin and cos, each [B, T, H/2]


def rope_of(positions_BT: Int[Array, "B T"], *, config: LlamaConfig, dtype: jnp.dtype) -> Rope:
    """Sines and cosines of every position's angles. The angles are float32; the results are cast to `dtype`.

    Under dynamic scaling a document's own length counts. It begins where positions restart, as packed rows have it.
    """
    angles_BTH = positions_BT.astype(jnp.float32)[:, :, None] * rope_frequencies(config)
    if config.rope_scaling == "dynamic":
        angles_BTH *= _dynamic_stretch(positions_BT, config=config)
    sin_BTH, cos_BTH = jnp.sin(angles_BTH), jnp.cos(angles_BTH)
    magnitude = rope_magnitude(config)
    if magnitude != 1:
        sin_BTH, cos_BTH = sin_BTH * magnitude, cos_BTH * magnitude
    return sin_BTH.astype(dtype), cos_BTH.astype(dtype)


@functools.cache
def rope_frequencies(config: LlamaConfig) -> Float[np.ndarray, " half_head"]:
    """Angular frequencies in radians per position, rounded to float32 from float64, for any length of documents."""
    pairs = np.arange(config.head_dim // 2)
    plain = config.rope_theta ** (-2 * pairs / config.head_dim)
    factor = config.rope_scaling_factor
    if factor == 1 or config.rope_scaling == "dynamic":
        kept = np.ones_like(plain)
    elif config.rope_scaling == "linear":
        kept = np.zeros_like(plain)
    elif config.rope_scaling == "llama3":
        low, high = config.rope_low_freq_factor, config.rope_high_freq_factor
        turns = config.rope_original_max_position * plain / (2 * math.pi)
        kept = np.clip((turns - low) / (high - low), 0, 1)
    else:
        start, stop = _yarn_range(config)
        kept = 1 - np.clip((pairs - start) / (stop - start), 0, 1)
    return (plain * (kept + (1 - kept) / factor)).astype(np.float32)


def rope_magnitude(config: LlamaConfig) -> float:
    """What sines and cosines are multiplied by: 1 but under YaRN."""
    if config.rope_scaling != "yarn":
        return 1.0
    return config.rope_attention_factor or yarn_magnitude(config.rope_scaling_factor)


def yarn_magnitude(factor: float, scale: float = 1.0) -> float:
    """YaRN's attention factor, 0.1 · scale · ln(factor) + 1; transformers calls the scale `mscale`."""
    return 0.1 * scale * math.log(factor) + 1.0 if factor > 1 else 1.0


def _yarn_range(config: LlamaConfig) -> tuple[float, float]:
    """The pairs between which frequencies are interpolated, from those kept to those stretched by the factor."""

    def pair_of(turns: float) -> float:
        wavelength = config.rope_original_max_position / turns
        return config.head_dim * math.log(wavelength / (2 * math.pi)) / (2 * math.log(config.rope_theta))

    start, stop = pair_of(config.rope_beta_fast), pair_of(config.rope_beta_slow)
    if config.rope_truncate:
        start, stop = math.floor(start), math.ceil(stop)
    start, stop = max(start, 0), min(stop, config.head_dim - 1)
    return start, stop if stop != start else start + 0.001  # as transformers, which then has a step there


def _dynamic_stretch(positions_BT: Array, *, config: LlamaConfig) -> Array:
    """[B, T, H/2]: the frequencies of each token's document relative to those of short ones.

    Theta is multiplied by g^(H / (H - 2)), with g = s · length / max_position - (s - 1), which is 1 up to max_position.
    """
    H, factor = config.head_dim, config.rope_scaling_factor
    T = positions_BT.shape[1]
    is_last_BT = jnp.pad(positions_BT[:, 1:] <= positions_BT[:, :-1], ((0, 0), (0, 1)), constant_values=True)
    last_BT = jax.lax.cummin(jnp.where(is_last_BT, jnp.arange(T), T - 1), axis=1, reverse=True)
    lengths_BT = jnp.take_along_axis(positions_BT, last_BT, axis=1) + 1
    growth_BT = factor * jnp.maximum(lengths_BT / config.max_position, 1.0) - (factor - 1)
    exponents = -np.arange(H // 2, dtype=np.float32) * 2 / (H - 2)
    return jnp.exp(jnp.log(growth_BT.astype(jnp.float32))[:, :, None] * exponents)


def rotate(x_BTNH: Array, rope: Rope) -> Array:
    """Rotates the pairs (i, i + H/2) of every head. This is Hugging Face's half-split layout."""
    first, second = jnp.split(x_BTNH, 2, axis=-1)
    sin, cos = (each_BTH[:, :, None, :] for each_BTH in rope)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
