"""Converts between Hugging Face's `config.json` of a Llama and `LlamaConfig`."""

from pathlib import Path
from typing import Any

from absl import logging

from allam_jax.errors import UserError
from allam_jax.model.llama_config import LlamaConfig

# Unsupported features, by key of config.json: the values that mean "not used", and the message for any other value.
_UNSUPPORTED: dict[str, tuple[tuple[Any, ...], str]] = {
    "attention_bias": ((False, None), "attention biases are not supported"),
    "mlp_bias": ((False, None), "feed-forward biases are not supported"),
    "hidden_act": (("silu", "swish"), "only SwiGLU (silu) is supported"),
    "quantization_config": ((None,), "quantised weights are not supported; export them unquantised"),
    "partial_rotary_factor": ((1, 1.0, None), "partial rotary embeddings are not supported"),
}
# Our fields -> key in config.json, its type, and what a file means that does not have it (...: it must).
_FIELDS: dict[str, tuple[str, type, Any]] = {
    "vocab_size": ("vocab_size", int, ...),
    "dim": ("hidden_size", int, ...),
    "mlp_dim": ("intermediate_size", int, ...),
    "num_layers": ("num_hidden_layers", int, ...),
    "num_heads": ("num_attention_heads", int, ...),
    "max_position": ("max_position_embeddings", int, 2048),
    "init_std": ("initializer_range", float, 0.02),
    "norm_eps": ("rms_norm_eps", float, 1e-6),
    "tie_embeddings": ("tie_word_embeddings", bool, False),
}
_LLAMA3 = {  # our fields -> keys of Llama 3's scaling
    "rope_scaling_factor": "factor",
    "rope_low_freq_factor": "low_freq_factor",
    "rope_high_freq_factor": "high_freq_factor",
    "rope_original_max_position": "original_max_position_embeddings",
}


def config_from_huggingface(values: dict[str, Any], *, file: Path, vocab_multiple: int) -> LlamaConfig:
    """Reads the architecture; accepts both spellings of RoPE (`rope_theta` + `rope_scaling`, and `rope_parameters`).

    Args:
        values: the content of `config.json`.
        file: its path, for errors.
        vocab_multiple: the rows of the tables are padded to a multiple of this.

    Raises:
        UserError: another architecture, an unsupported feature, or a value that is missing or of the wrong type.
    """
    if values.get("model_type") != "llama":
        raise UserError(f"{file}: model_type = {values.get('model_type')!r}; only 'llama' can be imported")
    for key, (accepted, message) in _UNSUPPORTED.items():
        if key in values and values[key] not in accepted:
            raise UserError(f"{file}: {key} = {values[key]!r}: {message}")

    def get(key: str, kind: type, default: Any) -> Any:
        value = values.get(key)
        value = default if value is None and default is not ... else value
        if isinstance(value, bool) is not (kind is bool) or not isinstance(value, (kind, int)):
            raise UserError(f"{file}: {key} = {value!r}; expected a value of type {kind.__name__}")
        return kind(value)

    fields = {ours: get(*theirs) for ours, theirs in _FIELDS.items()}
    return LlamaConfig(
        **fields,
        vocab_multiple=vocab_multiple,
        num_kv_heads=get("num_key_value_heads", int, fields["num_heads"]),
        head_dim=get("head_dim", int, fields["dim"] // max(fields["num_heads"], 1)),
        **_rope_from_huggingface(values, file=file),
    )


def _rope_from_huggingface(values: dict[str, Any], *, file: Path) -> dict[str, Any]:
    # transformers 5 writes everything into rope_parameters; earlier versions write rope_theta and rope_scaling.
    spelling = "rope_scaling" if values.get("rope_scaling") else "rope_parameters"
    rope = values.get(spelling) or {}
    if not isinstance(rope, dict):
        raise UserError(f"{file}: {spelling} = {rope!r}; expected an object")
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in ("default", "llama3"):
        raise UserError(f"{file}: {spelling}.rope_type = {kind!r}; supported are 'default' and 'llama3'")
    if rope.get("partial_rotary_factor") not in (None, 1, 1.0):
        raise UserError(f"{file}: {spelling}.partial_rotary_factor: partial rotary embeddings are not supported")
    rope = {"rope_theta": values.get("rope_theta", 10_000.0)} | rope
    found: dict[str, Any] = {}
    for ours, key in {"rope_theta": "rope_theta", **(_LLAMA3 if kind == "llama3" else {})}.items():
        if isinstance(rope.get(key), bool) or not isinstance(rope.get(key), (int, float)):
            raise UserError(f"{file}: {spelling}.{key} = {rope.get(key)!r}; expected a number (rope_type {kind!r})")
        found[ours] = int(rope[key]) if ours == "rope_original_max_position" else float(rope[key])
    return found


def config_to_huggingface(config: LlamaConfig, *, dtype: str, token_ids: dict[str, Any]) -> dict[str, Any]:
    """The content of `config.json`, with RoPE in the spelling that every version of transformers reads.

    Args:
        config: the architecture; `vocab_size` is exported without padding rows.
        dtype: of the exported weights, such as "float32".
        token_ids: those that exist of `bos_token_id`, `eos_token_id` and `pad_token_id`.
    """
    if config.dim % config.num_heads:
        logging.warning(
            "transformers 5 refuses to load this model: its width %d is no multiple of its %d heads",
            config.dim,
            config.num_heads,
        )
    rope_scaling = None
    if config.rope_scaling_factor != 1.0:
        rope_scaling = {"rope_type": "llama3"} | {key: getattr(config, ours) for ours, key in _LLAMA3.items()}
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        **{key: getattr(config, ours) for ours, (key, _, _) in _FIELDS.items()},
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "rope_theta": config.rope_theta,
        "rope_scaling": rope_scaling,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "mlp_bias": False,
        **{key: token_ids.get(key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")},
        "torch_dtype": dtype,
        "use_cache": True,
    }
