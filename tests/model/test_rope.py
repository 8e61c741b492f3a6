"""Rotary frequencies and angles against transformers, and against the formulas in float64."""

import dataclasses
import math

import jax.numpy as jnp
import numpy as np
import pytest

from allam_jax.errors import UserError
from allam_jax.model.llama_config import LlamaConfig, preset
from allam_jax.model.rope import rope_frequencies, rope_magnitude, rope_of

ORIGINAL, LONGEST, THETA, FACTOR = 1000, 4000, 5e5, 4.0
SCALINGS = ("none", "linear", "dynamic", "llama3", "yarn", "yarn of whole pairs")
HEAD_DIMS = (6, 64, 80, 128)


def config_of(scaling: str, head_dim: int = 64) -> LlamaConfig:
    name = scaling.split(" ")[0]
    return dataclasses.replace(
        preset("tiny"),
        head_dim=head_dim,
        rope_theta=THETA,
        rope_scaling=name if name != "none" else "llama3",
        rope_scaling_factor=1.0 if name == "none" else FACTOR,
        rope_original_max_position=ORIGINAL,
        rope_truncate=scaling == "yarn of whole pairs",
        max_position=LONGEST,
    )


def frequency(scaling: str, pair: int, head_dim: int, *, length: int = 1) -> float:
    """Written from the papers, a pair at a time, in float64."""
    theta = THETA
    if scaling == "dynamic":
        growth = FACTOR * max(length, LONGEST) / LONGEST - (FACTOR - 1)
        theta *= growth ** (head_dim / (head_dim - 2))
    plain = theta ** (-2 * pair / head_dim)
    if scaling in ("none", "dynamic"):
        return plain
    if scaling == "linear":
        return plain / FACTOR
    if scaling == "llama3":
        turns = ORIGINAL * plain / (2 * math.pi)
        kept = min(max((turns - 1) / (4 - 1), 0), 1)
        return kept * plain + (1 - kept) * plain / FACTOR
    # YaRN, equation 23: the pair that makes r turns within the original context, solved for the pair.
    fast, slow = (head_dim * math.log(ORIGINAL / (2 * math.pi * r)) / (2 * math.log(THETA)) for r in (32, 1))
    if scaling == "yarn of whole pairs":
        fast, slow = math.floor(fast), math.ceil(slow)
    fast, slow = max(fast, 0), min(slow, head_dim - 1)
    stretched = min(max((pair - fast) / (slow - fast), 0), 1)
    return stretched * plain / FACTOR + (1 - stretched) * plain


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
@pytest.mark.parametrize("scaling", SCALINGS)
def test_frequencies_are_the_formulas_rounded_once(scaling, head_dim):
    found = rope_frequencies(config_of(scaling, head_dim))
    expected = [frequency(scaling, pair, head_dim) for pair in range(head_dim // 2)]
    np.testing.assert_allclose(found, expected, rtol=2**-24 * 1.01)
    assert found.dtype == np.float32
    if scaling != "none" and scaling != "dynamic" and head_dim > 6:
        assert found[-1] == np.float32(expected[-1]) != np.float32(frequency("none", head_dim // 2 - 1, head_dim))


@pytest.mark.parity
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
@pytest.mark.parametrize("scaling", SCALINGS[1:])
def test_frequencies_and_factor_are_those_of_transformers(scaling, head_dim):
    """They round theta^(2i/H) in float32: a few units in the last place."""
    transformers = pytest.importorskip("transformers")
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    name = scaling.split(" ")[0]
    rope = {"rope_type": name, "rope_theta": THETA, "factor": FACTOR}
    if name in ("llama3", "yarn"):
        rope["original_max_position_embeddings"] = ORIGINAL
    rope |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0} if name == "llama3" else {}
    rope |= {"truncate": scaling == "yarn of whole pairs"} if name == "yarn" else {}
    sizes = {"head_dim": head_dim, "num_attention_heads": 8, "hidden_size": 8 * head_dim}
    theirs = transformers.LlamaConfig(max_position_embeddings=LONGEST, rope_parameters=rope, **sizes)
    frequencies, factor = ROPE_INIT_FUNCTIONS[name](theirs, "cpu")
    ours = config_of(scaling, head_dim)
    np.testing.assert_allclose(rope_frequencies(ours), frequencies.numpy(), rtol=1.2e-6)
    assert rope_magnitude(ours) == pytest.approx(factor, rel=1e-15)
    if name == "dynamic":
        for length in (LONGEST + 1, 3 * LONGEST):
            longer, _ = ROPE_INIT_FUNCTIONS[name](theirs, "cpu", seq_len=length)
            angles = np.unwrap(_angles(ours, np.arange(length)[None])[0], axis=0)
            np.testing.assert_allclose(angles[-1], longer.numpy() * (length - 1), rtol=2e-6, atol=1e-3)


def _angles(config, positions_BT):
    sin, cos = rope_of(jnp.asarray(positions_BT), config=config, dtype=jnp.float32)
    return np.arctan2(np.asarray(sin, np.float64), np.asarray(cos, np.float64))


@pytest.mark.parametrize("scaling", SCALINGS)
def test_sines_are_those_of_the_angles_within_float32(scaling):
    """An angle is rounded twice, the frequency and its product with the position: 2^-23 of it, and the sine's last bit.

    The lengths of documents, of which one is longer than the context, decide under dynamic scaling only."""
    config, lengths = config_of(scaling), (5, 2 * LONGEST, 700)
    positions = np.concatenate([np.arange(length) for length in lengths])
    sin, cos = rope_of(jnp.asarray(positions)[None], config=config, dtype=jnp.float32)
    start, magnitude = 0, 1 + 0.1 * math.log(FACTOR) if scaling.startswith("yarn") else 1.0
    for length in lengths:
        exact = np.outer(np.arange(length), [frequency(scaling, pair, 64, length=length) for pair in range(32)])
        roundings = 8 if scaling == "dynamic" and length > LONGEST else 1  # there the growth is computed in float32
        bound = roundings * 2**-23 * exact + 3e-7
        part = slice(start, start + length)
        assert (np.abs(sin[0, part] / magnitude - np.sin(exact)) <= bound).all()
        assert (np.abs(cos[0, part] / magnitude - np.cos(exact)) <= bound).all()
        start += length


def test_numbers_that_make_no_scaling_are_refused():
    for change, message in (
        ({"rope_scaling": "yarn", "rope_beta_fast": 1.0}, "rope_beta_slow = 1.0: YaRN needs less than"),
        ({"rope_scaling": "dynamic", "head_dim": 2}, "head_dim = 2: dynamic NTK scaling needs more than 2"),
        ({"rope_low_freq_factor": 4.0}, "rope_low_freq_factor = 4.0: expected less than"),
        ({"rope_scaling": "longrope"}, "expected one of 'llama3', 'linear', 'dynamic', 'yarn'"),
    ):
        with pytest.raises(UserError, match=message):
            dataclasses.replace(preset("tiny"), **change)
