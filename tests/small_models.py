"""Architectures small enough for any test, with grouped-query attention and padding rows."""

import jax

from allam_jax.model.llama import init_params
from allam_jax.model.llama_config import LlamaConfig

# One program in place of a hundred, which JAX would compile operation by operation.
init_jit = jax.jit(init_params, static_argnames="config")

# Divisible by the meshes that tests use: 8 query heads, width 32.
SMALL = LlamaConfig(
    vocab_size=125,
    vocab_multiple=64,
    dim=32,
    num_layers=3,
    num_heads=8,
    num_kv_heads=4,
    head_dim=6,
    mlp_dim=48,
    tie_embeddings=False,
    norm_eps=1e-5,
    rope_theta=10_000.0,
)

# Cheap enough for brute force. The weights are wide, so that its predictions differ.
TINY = LlamaConfig(
    vocab_size=29,
    vocab_multiple=8,
    dim=16,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=4,
    mlp_dim=24,
    tie_embeddings=False,
    norm_eps=1e-5,
    rope_theta=10_000.0,
    max_position=128,
    init_std=0.3,
)
