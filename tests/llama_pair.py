"""Random Llamas of transformers, written to disk as their users get them, and ours beside them."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from allam_jax.model.llama import Params, bind
from allam_jax.model.llama_config import ComputeOptions, LlamaConfig
from allam_jax.weights.huggingface import import_huggingface

# Small shapes, each with something that a mistake would hide in.
SHAPES: dict[str, dict[str, Any]] = {
    "mha_untied": {"num_key_value_heads": 4},
    "gqa_tied": {"num_key_value_heads": 2, "tie_word_embeddings": True},
    "mqa": {"num_key_value_heads": 1},
    "head_24": {"hidden_size": 96, "num_key_value_heads": 2, "head_dim": 24},
    "head_80": {"hidden_size": 160, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 80},
    "wider_heads": {"num_key_value_heads": 2, "head_dim": 32},  # heads x head_dim is not the width
    "odd_vocabulary": {"vocab_size": 251, "num_key_value_heads": 2},
    "llama3_rope": {
        "num_key_value_heads": 2,
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 500_000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    },
    "theta_and_eps": {"num_key_value_heads": 4, "rope_theta": 1e6, "rms_norm_eps": 1e-3},
    # The other model types, each with a scaling of RoPE that 96 tokens feel.
    "mistral_dynamic": {
        "model_type": "mistral",
        "sliding_window": None,
        "num_key_value_heads": 2,
        "max_position_embeddings": 40,
        "rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0},
    },
    "qwen2_yarn": {
        "model_type": "qwen2",
        "num_key_value_heads": 2,
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 1e6,
            "factor": 4.0,
            "original_max_position_embeddings": 128,
        },
    },
    "qwen3_linear_tied": {
        "model_type": "qwen3",
        "num_key_value_heads": 2,
        "head_dim": 32,
        "tie_word_embeddings": True,
        "rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0},
    },
    "seed_oss_yarn_mscale": {
        "model_type": "seed_oss",
        "num_key_value_heads": 2,
        "head_dim": 24,
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 1e4,
            "factor": 8.0,
            "original_max_position_embeddings": 64,
            "beta_fast": 16.0,
            "beta_slow": 2.0,
            "mscale": 1.0,
            "mscale_all_dim": 0.7,
            "truncate": False,
        },
    },
    "internlm3": {"model_type": "internlm3", "num_key_value_heads": 2, "head_dim": 16},
    "iquestcoder": {"model_type": "iquestcoder", "num_key_value_heads": 2, "head_dim": 16},
}


@dataclasses.dataclass
class Pair:
    """The same network twice."""

    torch_model: Any
    directory: Path
    params: Params
    config: LlamaConfig

    def torch_logits(self, tokens_BT: np.ndarray) -> np.ndarray:
        return torch_logits(self.torch_model, tokens_BT)

    def logits(self, tokens_BT: np.ndarray) -> np.ndarray:
        """Ours, without the padding ids."""
        return np.asarray(our_logits(self.params, tokens_BT, config=self.config))[..., : self.config.vocab_size]


def torch_logits(model: Any, tokens_BT: np.ndarray) -> np.ndarray:
    import torch

    with torch.no_grad():
        return model(torch.tensor(tokens_BT)).logits.numpy()


@functools.partial(jax.jit, static_argnames=("config", "compute_dtype"))
def our_logits(
    params: Params,
    tokens_BT: jax.Array,
    *,
    config: LlamaConfig,
    compute_dtype: str = "float32",
    segment_ids_BT: jax.Array | None = None,
    positions_BT: jax.Array | None = None,
) -> jax.Array:
    """Logits, padding ids included; each row is one document unless the inputs say otherwise."""
    if segment_ids_BT is None:
        segment_ids_BT = jnp.ones_like(tokens_BT)
    if positions_BT is None:
        positions_BT = jnp.broadcast_to(jnp.arange(tokens_BT.shape[1]), tokens_BT.shape)
    model = bind(params, config=config, options=ComputeOptions(compute_dtype=compute_dtype))
    return model(tokens_BT, segment_ids_BT=segment_ids_BT, positions_BT=positions_BT)


def random_torch_llama(*, std: float = 0.1, model_type: str = "llama", **changes: Any) -> Any:
    """A model of transformers in float32 whose every parameter is random, norms and biases included.

    The default standard deviation is larger than at the start of training, so that attention is far from uniform.
    """
    import torch
    import transformers

    values = {
        "vocab_size": 256,
        "hidden_size": 64,
        "intermediate_size": 176,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 512,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(model_type, **(values | changes))
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(1.0 if "norm" in name else 0.0, std)
    return model.to(torch.float32).eval()


def make_pair(directory: Path, *, max_shard_size: str = "5GB", std: float = 0.1, **changes: Any) -> Pair:
    """Saves a random transformers Llama in `directory` and imports it."""
    model = random_torch_llama(std=std, **changes)
    model.save_pretrained(directory, max_shard_size=max_shard_size)
    params, config = import_huggingface(directory, vocab_multiple=32)
    return Pair(model, directory, params, config)
