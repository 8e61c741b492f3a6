"""Converts between Hugging Face's `config.json` of Llama and its kin and `LlamaConfig`."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from absl import logging

from allam_jax.errors import UserError
from allam_jax.model.llama_config import FAMILIES, LlamaConfig
from allam_jax.model.rope import yarn_magnitude

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


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Kin:
    """How transformers writes the networks of one `model_type`."""

    architecture: str
    defaults: Mapping[str, Any]  # what a file means that lacks these keys
    written: Mapping[str, Any]  # keys of its own, beside those that all have


_NO_BIAS = {"attention_bias": False, "mlp_bias": False}
_NO_WINDOW = {"sliding_window": None, "use_sliding_window": False}
_QWEN = {"max_position_embeddings": 32_768, "num_key_value_heads": 32, "max_window_layers": 28}
# tests/parity compares each with transformers. Of the causal models of transformers 5.24, no other gives the logits of
# Llama, Qwen2 or Qwen3 from tensors of the same names.
_KIN = {
    "llama": _Kin(architecture="LlamaForCausalLM", defaults={}, written=_NO_BIAS),
    "internlm3": _Kin(
        architecture="InternLM3ForCausalLM",
        defaults={"max_position_embeddings": 32_768, "num_key_value_heads": 2, "head_dim": 128, "rms_norm_eps": 1e-5},
        written=_NO_BIAS,
    ),
    "iquestcoder": _Kin(
        architecture="IQuestCoderForCausalLM",
        defaults={"max_position_embeddings": 131_072, "num_key_value_heads": 8, "head_dim": 128, "rms_norm_eps": 1e-5},
        written=_NO_BIAS,
    ),
    "mistral": _Kin(
        architecture="MistralForCausalLM",
        defaults={"max_position_embeddings": 131_072, "num_key_value_heads": 8, "sliding_window": 4096},
        written={"sliding_window": None},
    ),
    "qwen2": _Kin(architecture="Qwen2ForCausalLM", defaults=_QWEN, written=_NO_WINDOW),
    "qwen3": _Kin(
        architecture="Qwen3ForCausalLM",
        defaults=_QWEN | {"head_dim": 128},
        written=_NO_WINDOW | {"attention_bias": False},
    ),
    "seed_oss": _Kin(
        architecture="SeedOssForCausalLM",
        defaults={"max_position_embeddings": 524_288, "num_key_value_heads": 8, "head_dim": 128},
        written={"attention_bias": True, "attention_out_bias": False, "mlp_bias": False, "residual_dropout": 0.0},
    ),
}
# Features that the network lacks, by key of config.json: the values that mean "not used", and what it is.
_UNSUPPORTED: dict[str, tuple[tuple[Any, ...], str]] = {
    "mlp_bias": ((False, None), "feed-forward biases are not supported"),
    "hidden_act": (("silu", "swish"), "only SwiGLU (silu) is supported"),
    "partial_rotary_factor": ((1, 1.0, None), "partial rotary embeddings are not supported"),
    "attention_out_bias": ((False, None), "a bias of the output projection is not supported"),
    "clip_qkv": ((None,), "queries, keys and values that are clipped are not supported"),
}
# What other networks have, of which people hold weights.
_OTHERS = {
    "cohere": "layers in parallel, and LayerNorm",
    "deepseek_v2": "latent attention and experts",
    "deepseek_v3": "latent attention and experts",
    "ernie4_5": "rotary embeddings of neighbouring pairs",
    "falcon": "LayerNorm and another feed-forward network",
    "gemma": "scaled embeddings and another norm",
    "gemma2": "norms after each part, and capped logits",
    "gemma3_text": "norms after each part, and windows of attention",
    "gpt2": "learned positions and LayerNorm",
    "gpt_neox": "layers in parallel, and LayerNorm",
    "granite": "scaled embeddings, residual sums and logits",
    "mixtral": "a mixture of experts",
    "olmo": "norms without parameters",
    "olmo2": "norms after each part",
    "phi3": "one matrix for q, k and v",
    "qwen2_moe": "a mixture of experts",
    "qwen3_moe": "a mixture of experts",
    "smollm3": "layers without positions",
    "stablelm": "LayerNorm and partial rotary embeddings",
    "starcoder2": "LayerNorm and biases everywhere",
}
_LARGEST = 1e12  # of all numbers in a config.json
_PLAIN, _DYNAMIC, _YARN = "default", "dynamic", "yarn"
# Kinds of RoPE -> the numbers that each must state, by our field.
_FACTOR = {"rope_scaling_factor": "factor"}
_ROPE: dict[str, dict[str, str]] = {
    _PLAIN: {},
    "linear": _FACTOR,
    _DYNAMIC: _FACTOR,
    "llama3": _FACTOR | {"rope_low_freq_factor": "low_freq_factor", "rope_high_freq_factor": "high_freq_factor"},
    _YARN: _FACTOR | {"rope_beta_fast": "beta_fast", "rope_beta_slow": "beta_slow"},
}
_ORIGINAL = "original_max_position_embeddings"
_HAS_ORIGINAL = ("llama3", _YARN)


def config_from_huggingface(values: dict[str, Any], *, file: Path, vocab_multiple: int) -> LlamaConfig:
    """Reads the architecture; accepts both spellings of RoPE (`rope_theta` + `rope_scaling`, and `rope_parameters`).

    Args:
        values: the content of `config.json`.
        file: its path, for errors.
        vocab_multiple: the rows of the tables are padded to a multiple of this.

    Raises:
        UserError: another architecture, an unsupported feature, or a value that is missing or of the wrong type.
    """
    model_type = str(values.get("model_type"))
    if model_type not in FAMILIES:
        has = f"has {_OTHERS[model_type]}" if model_type in _OTHERS else "is another network"
        has = has if values.get("model_type") else "is not stated"
        raise UserError(f"{file}: model_type = {model_type!r} {has}; {', '.join(FAMILIES)} can be imported")
    for key, (accepted, message) in _UNSUPPORTED.items():
        if key in values and values[key] not in accepted:
            raise UserError(f"{file}: {key} = {values[key]!r}: {message}")
    if values.get("attention_bias") and not FAMILIES[model_type].qkv_bias:
        raise UserError(f"{file}: attention_bias = True: of {model_type}, only models without biases are supported")
    if model_type == "seed_oss" and values.get("attention_bias") is False:
        raise UserError(f"{file}: attention_bias = False: of {model_type}, only models with biases are supported")
    if values.get("quantization_config") is not None:
        refuse_quantised(f"{file}: quantization_config", method=values["quantization_config"])
    values = dict(_KIN[model_type].defaults) | values  # a null stays, as for transformers

    def get(key: str, kind: type, default: Any) -> Any:
        value = values.get(key)
        value = default if value is None and default is not ... else value
        numbers = (float, int) if kind is float else (int,)
        if isinstance(value, bool) is not (kind is bool) or not isinstance(value, numbers):
            raise UserError(f"{file}: {key} = {value!r}; expected a value of type {kind.__name__}")
        if abs(value) > _LARGEST:
            raise UserError(f"{file}: {key} is too large; expected a number of a network")
        return kind(value)

    fields: dict[str, Any] = {ours: get(*theirs) for ours, theirs in _FIELDS.items()}
    _refuse_windows(values, max_position=fields["max_position"], num_layers=fields["num_layers"], file=file)
    fields["num_kv_heads"] = get("num_key_value_heads", int, fields["num_heads"])
    fields["head_dim"] = get("head_dim", int, fields["dim"] // max(fields["num_heads"], 1))
    rope = _rope_from_huggingface(values, file=file, max_position=fields["max_position"])
    try:
        return LlamaConfig(model_type=model_type, vocab_multiple=vocab_multiple, **fields, **rope)
    except UserError as error:
        raise UserError(f"{file}: {str(error).removeprefix('config.')}") from None


def refuse_quantised(where: str, *, method: Any) -> None:
    """UserError that names the method of quantised weights (or the object that states it) and what to do."""
    name = method.get("quant_method", "of an unknown method") if isinstance(method, Mapping) else method
    raise UserError(
        f"{where}: the weights are quantised ({name}), and training needs whole ones; give the model's unquantised "
        "release, or load it in transformers with its quantiser, `dequantize()` it and `save_pretrained` in bfloat16"
    )


def _refuse_windows(values: Mapping[str, Any], *, max_position: int, num_layers: int, file: Path) -> None:
    """UserError if some layer attends to a window that is shorter than the longest context."""
    stated = values.get("layer_types")
    layer_types = set(map(str, stated)) if isinstance(stated, list) else set()
    if values["model_type"] == "mistral":
        has_windows = True
    elif layer_types:
        has_windows = layer_types != {"full_attention"}
    else:
        first = values.get("max_window_layers")  # that has one, of Qwen's layers
        has_windows = bool(values.get("use_sliding_window")) and not (isinstance(first, int) and first >= num_layers)
    window = values.get("sliding_window")
    if has_windows and window is not None and not (isinstance(window, int) and window >= max_position):
        raise UserError(
            f"{file}: sliding_window = {window!r}: attention in windows is not supported; for texts that are never "
            "longer than the window, set max_position_embeddings to it: the model is then the same"
        )
    if unknown := sorted(layer_types - {"full_attention", "sliding_attention"}):
        raise UserError(f"{file}: layer_types has {unknown[0]}: only full attention is supported")


def _rope_from_huggingface(values: dict[str, Any], *, file: Path, max_position: int) -> dict[str, Any]:
    # transformers 5 writes everything into rope_parameters; earlier versions write rope_theta and rope_scaling.
    spelling = "rope_scaling" if values.get("rope_scaling") else "rope_parameters"
    rope = values.get(spelling) or {}
    if not isinstance(rope, dict):
        raise UserError(f"{file}: {spelling} = {rope!r}; expected an object")
    if nested := next((key for key, value in rope.items() if isinstance(value, dict)), None):
        raise UserError(f"{file}: {spelling}.{nested}: RoPE that differs between layers is not supported")
    kind = str(rope.get("rope_type", rope.get("type", _PLAIN)))
    if kind not in _ROPE:
        raise UserError(f"{file}: {spelling}.rope_type = {kind!r}; supported are {', '.join(_ROPE)}")
    if rope.get("partial_rotary_factor") not in (None, 1, 1.0):
        raise UserError(f"{file}: {spelling}.partial_rotary_factor: partial rotary embeddings are not supported")
    original = values.get(_ORIGINAL) or rope.get(_ORIGINAL) or max_position  # in this order, as transformers
    thetas = (rope.get("rope_theta"), values.get("rope_theta"), 10_000.0)  # a null means the next one
    rope = rope | {"rope_theta": next(theta for theta in thetas if theta is not None)}
    if kind == _YARN:
        rope["beta_fast"], rope["beta_slow"] = rope.get("beta_fast") or 32, rope.get("beta_slow") or 1

    def number(key: str, value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise UserError(f"{file}: {spelling}.{key} = {value!r}; expected a number (rope_type {kind!r})")
        if abs(value) > _LARGEST:
            raise UserError(f"{file}: {spelling}.{key} is too large; expected a number of a network")
        return float(value)

    if kind == _YARN and rope.get("factor") is None:
        rope["factor"] = max_position / number(_ORIGINAL, original)
    found: dict[str, Any] = {ours: number(key, rope.get(key)) for ours, key in _ROPE[kind].items()}
    found["rope_theta"] = number("rope_theta", rope["rope_theta"])
    if kind != _PLAIN:
        found["rope_scaling"] = kind
    if kind in _HAS_ORIGINAL:
        found["rope_original_max_position"] = int(number(_ORIGINAL, original))
        if found["rope_original_max_position"] != original:
            raise UserError(f"{file}: {_ORIGINAL} = {original!r}; expected a whole number")
    if kind == _YARN:
        found["rope_truncate"] = bool(rope.get("truncate", True))  # null means no, as for transformers
        if rope.get("attention_factor") is not None:
            found["rope_attention_factor"] = number("attention_factor", rope["attention_factor"])
            if found["rope_attention_factor"] <= 0:
                raise UserError(
                    f"{file}: {spelling}.attention_factor = {rope['attention_factor']}; expected more than 0"
                )
        elif rope.get("mscale") and rope.get("mscale_all_dim"):
            above, below = (number(key, rope[key]) for key in ("mscale", "mscale_all_dim"))
            factor = found["rope_scaling_factor"]
            found["rope_attention_factor"] = yarn_magnitude(factor, above) / yarn_magnitude(factor, below)
    if not _is_scaled(kind, found.get("rope_scaling_factor", 1.0), found.get("rope_attention_factor", 0.0)):
        return {"rope_theta": found["rope_theta"]}
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
    kin = _KIN[config.model_type]
    return {
        "architectures": [kin.architecture],
        "model_type": config.model_type,
        **{key: getattr(config, ours) for ours, (key, _, _) in _FIELDS.items()},
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "rope_theta": config.rope_theta,
        "rope_scaling": _rope_to_huggingface(config),
        "attention_dropout": 0.0,
        **kin.written,
        **{key: token_ids.get(key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")},
        "torch_dtype": dtype,
        "use_cache": True,
    }


def _rope_to_huggingface(config: LlamaConfig) -> dict[str, Any] | None:
    kind = config.rope_scaling
    if not _is_scaled(kind, config.rope_scaling_factor, config.rope_attention_factor):
        return None
    rope: dict[str, Any] = {"rope_type": kind, **{key: getattr(config, ours) for ours, key in _ROPE[kind].items()}}
    if kind in _HAS_ORIGINAL:
        rope[_ORIGINAL] = config.rope_original_max_position
    if kind == _YARN:
        rope["truncate"] = config.rope_truncate
        if config.rope_attention_factor:
            rope["attention_factor"] = config.rope_attention_factor
    return rope


def _is_scaled(kind: str, factor: float, attention_factor: float) -> bool:
    """Whether RoPE differs from plain RoPE; with a factor of 1, only dynamic scaling beyond the context may."""
    return factor != 1.0 or kind == _DYNAMIC or (kind == _YARN and attention_factor != 0.0)
