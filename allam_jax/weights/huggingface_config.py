"""Converts between Hugging Face's `config.json` of a Llama and `LlamaConfig`."""

from pathlib import Path
from typing import Any

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
_LLAMA3_KEYS = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")


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

    def get(key: str, kind: type, default: Any = None) -> Any:
        value = values.get(key)
        value = default if value is None else value
        if isinstance(value, bool) is not (kind is bool) or not isinstance(value, (kind, int)):
            raise UserError(f"{file}: {key} = {value!r}; expected a value of type {kind.__name__}")
        return kind(value)

    num_heads = get("num_attention_heads", int)
    dim = get("hidden_size", int)
    return LlamaConfig(
        vocab_size=get("vocab_size", int),
        vocab_multiple=vocab_multiple,
        dim=dim,
        num_layers=get("num_hidden_layers", int),
        num_heads=num_heads,
        num_kv_heads=get("num_key_value_heads", int, num_heads),
        head_dim=get("head_dim", int, dim // max(num_heads, 1)),
        mlp_dim=get("intermediate_size", int),
        tie_embeddings=get("tie_word_embeddings", bool, False),
        norm_eps=get("rms_norm_eps", float, 1e-6),
        max_position=get("max_position_embeddings", int, 2048),
        init_std=get("initializer_range", float, 0.02),
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
    keys = ("rope_theta", *(_LLAMA3_KEYS if kind == "llama3" else ()))
    rope = {"rope_theta": values.get("rope_theta", 10_000.0)} | rope
    for key in keys:
        if isinstance(rope.get(key), bool) or not isinstance(rope.get(key), (int, float)):
            raise UserError(f"{file}: {spelling}.{key} = {rope.get(key)!r}; expected a number (rope_type {kind!r})")
    if kind == "default":
        return {"rope_theta": float(rope["rope_theta"])}
    return {
        "rope_theta": float(rope["rope_theta"]),
        "rope_scaling_factor": float(rope["factor"]),
        "rope_low_freq_factor": float(rope["low_freq_factor"]),
        "rope_high_freq_factor": float(rope["high_freq_factor"]),
        "rope_original_max_position": int(rope["original_max_position_embeddings"]),
    }


def config_to_huggingface(config: LlamaConfig, *, dtype: str, token_ids: dict[str, Any]) -> dict[str, Any]:
    """The content of `config.json`, with RoPE in the spelling that every version of transformers reads.

    Args:
        config: the architecture; `vocab_size` is exported without padding rows.
        dtype: of the exported weights, such as "float32".
        token_ids: those that exist of `bos_token_id`, `eos_token_id` and `pad_token_id`.
    """
    rope_scaling = None
    if config.rope_scaling_factor != 1.0:
        rope_scaling = {
            "rope_type": "llama3",
            "factor": config.rope_scaling_factor,
            "low_freq_factor": config.rope_low_freq_factor,
            "high_freq_factor": config.rope_high_freq_factor,
            "original_max_position_embeddings": config.rope_original_max_position,
        }
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": config.vocab_size,
        "hidden_size": config.dim,
        "intermediate_size": config.mlp_dim,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": config.max_position,
        "initializer_range": config.init_std,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "rope_scaling": rope_scaling,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "mlp_bias": False,
        "tie_word_embeddings": config.tie_embeddings,
        "bos_token_id": token_ids.get("bos_token_id"),
        "eos_token_id": token_ids.get("eos_token_id"),
        "pad_token_id": token_ids.get("pad_token_id"),
        "torch_dtype": dtype,
        "use_cache": True,
    }
