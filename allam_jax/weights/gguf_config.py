"""Converts between the metadata of GGUF files and `LlamaConfig`."""

import dataclasses
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from allam_jax.errors import UserError
from allam_jax.gguf_file import GgufFile
from allam_jax.model.llama_config import LlamaConfig
from allam_jax.model.rope import rope_frequencies, yarn_magnitude
from allam_jax.weights.huggingface_config import config_from_huggingface

if TYPE_CHECKING:
    from gguf import GGUFWriter

TABLE, HEAD, ROPE_FACTORS = "token_embd.weight", "output.weight", "rope_freqs.weight"
# Our model type -> llama.cpp's architecture. Mistral's networks are Llamas there.
ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
_SIZES = {  # key below the architecture's -> key in config.json
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "block_count": "num_hidden_layers",
    "attention.head_count": "num_attention_heads",
    "context_length": "max_position_embeddings",
}
_LOW, _HIGH = 1.0, 4.0  # of all models with this scaling that Meta has published
_TOLERANCE = 1e-5  # of a frequency in float32


def has_paired_rows(architecture: str) -> bool:
    """Whether rows of q and k stand in the order of llama.cpp, which rotates neighbours, not halves of a head."""
    return architecture == "llama"


def config_from_gguf(file: GgufFile, *, vocab_multiple: int) -> LlamaConfig:
    """Reads the architecture; the rows of the tables are padded to a multiple of `vocab_multiple`.

    UserError for another network, an unsupported feature, or metadata that is missing or of the wrong type.
    """
    name = file.get("general.architecture", str)
    if name not in ARCHITECTURES.values():
        known = ", ".join(dict.fromkeys(ARCHITECTURES.values()))
        raise UserError(f"{file.path}: general.architecture = {name!r} is another network; {known} can be imported")
    if file.get(f"{name}.expert_count", int, 0):
        raise UserError(
            f"{file.path}: {name}.expert_count: has a mixture of experts; only dense networks are supported"
        )
    if TABLE not in file.tensors:
        raise UserError(f"{file.path}: has no tensor {TABLE}; it is no whole model")
    values: dict[str, Any] = {theirs: file.get(f"{name}.{key}", int) for key, theirs in _SIZES.items()}
    heads = values["num_attention_heads"]
    rotated = file.get(f"{name}.rope.dimension_count", int, values["hidden_size"] // max(heads, 1))
    values |= {
        "model_type": name,
        "vocab_size": file.tensors[TABLE].shape[0],
        "num_key_value_heads": file.get(f"{name}.attention.head_count_kv", int, heads),
        "head_dim": file.get(f"{name}.attention.key_length", int, rotated),
        "rms_norm_eps": _shortest(file.get(f"{name}.attention.layer_norm_rms_epsilon", float)),
        "rope_theta": _shortest(file.get(f"{name}.rope.freq_base", float, 10_000.0)),
        "tie_word_embeddings": HEAD not in file.tensors,
    }
    if rotated != values["head_dim"]:
        raise UserError(f"{file.path}: {name}.rope.dimension_count: partial rotary embeddings are not supported")
    window = file.get(f"{name}.attention.sliding_window", int, 0)
    if 0 < window < values["max_position_embeddings"]:
        raise UserError(f"{file.path}: {name}.attention.sliding_window: attention in windows is not supported")
    if min(values["hidden_size"], heads, values["num_key_value_heads"], values["head_dim"]) < 1:
        raise UserError(f"{file.path}: a size in its metadata is 0; the file is damaged: fetch it again")
    values["rope_scaling"] = _scaling(file, name, theta=values["rope_theta"], head_dim=values["head_dim"])
    return config_from_huggingface(values, file=file.path, vocab_multiple=vocab_multiple)


def _shortest(value: float) -> float:
    """The shortest decimal of a float32: 1e-05, not 9.999999747378752e-06."""
    return float(str(np.float32(value)))


def _scaling(file: GgufFile, name: str, *, theta: float, head_dim: int) -> dict[str, Any] | None:
    """`rope_scaling` of a config.json."""

    def number(key: str, default: Any = ...) -> float:
        return _shortest(file.get(f"{name}.rope.scaling.{key}", float, default))

    kind = file.get(f"{name}.rope.scaling.type", str, "none")
    if ROPE_FACTORS in file.tensors:
        factors = file.tensors[ROPE_FACTORS]
        with open(factors.file, "rb") as stream:
            stream.seek(factors.offset)
            stretch = np.frombuffer(stream.read(factors.nbytes), np.float32).astype(np.float64)
        return _llama3(stretch, theta=theta, head_dim=head_dim, where=str(file.path))
    if kind == "none":
        old = file.get(f"{name}.rope.scale_linear", float, 1.0)
        return None if old == 1 else {"rope_type": "linear", "factor": _shortest(old)}
    scaling = {"rope_type": kind, "factor": number("factor")}
    if kind == "yarn":
        original = file.get(f"{name}.rope.scaling.original_context_length", int)
        scaling |= {"original_max_position_embeddings": original}
        scaling |= {key: number(f"yarn_{key}", default) for key, default in (("beta_fast", 32.0), ("beta_slow", 1.0))}
        if (magnitude := number("attn_factor", 1.0)) != 1:
            scaling["attention_factor"] = magnitude * yarn_magnitude(scaling["factor"])
    return scaling


def _llama3(stretch: np.ndarray, *, theta: float, head_dim: int, where: str) -> dict[str, Any] | None:
    """The scaling of Llama 3 of which a file has only what it does: by how much the wavelength of each pair grows."""
    turns = theta ** (-2 * np.arange(head_dim // 2) / head_dim) / (2 * math.pi)  # in a context of one token
    if stretch.shape != turns.shape or not np.all(np.isfinite(stretch) & (stretch > 0)):
        raise UserError(f"{where}: {ROPE_FACTORS} does not fit heads of {head_dim}; fetch the file again")
    if np.allclose(stretch, 1, rtol=_TOLERANCE):
        return None
    factor = float(f"{stretch.max():.6g}")  # of float32
    kept = (1 / stretch - 1 / factor) / (1 - 1 / factor)  # turns * slope + offset between 0 and 1
    between = (kept > _TOLERANCE) & (kept < 1 - _TOLERANCE)
    candidates = []  # the highest of the three numbers, with 1 as the lowest: a common factor changes nothing
    if between.any():
        context = float(np.mean((_LOW + (_HIGH - _LOW) * kept[between]) / turns[between]))
        candidates.append((round(context), _HIGH))
    if between.sum() > 1:
        slope, offset = np.polyfit(turns[between], kept[between], 1)
        high = 1 - 1 / min(float(offset), -_TOLERANCE)
        candidates.append((round(slope * (high - _LOW)), float(f"{high:.5g}")))
    for original, high in candidates:
        again = np.clip((original * turns - _LOW) / (high - _LOW), 0, 1)
        if np.allclose(1 / (again + (1 - again) / factor), stretch, rtol=10 * _TOLERANCE):
            return {
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": _LOW,
                "high_freq_factor": high,
                "original_max_position_embeddings": original,
            }
    raise UserError(f"{where}: {ROPE_FACTORS} is not the scaling of Llama 3, and no other with such factors is known")


def stretch_of(config: LlamaConfig) -> np.ndarray | None:
    """`rope_freqs.weight`: by how much the wavelength of each pair of a head grows; None without Llama 3's scaling."""
    if config.rope_scaling != "llama3" or config.rope_scaling_factor == 1:
        return None
    plain = dataclasses.replace(config, rope_scaling_factor=1.0)
    return (rope_frequencies(plain).astype(np.float64) / rope_frequencies(config)).astype(np.float32)


def check_gguf_expressible(config: LlamaConfig) -> None:
    """UserError for a network that llama.cpp does not have."""
    if config.model_type not in ARCHITECTURES:
        raise UserError(
            f"export: llama.cpp has no network like {config.model_type} with our tensors; a GGUF file can hold "
            f"{', '.join(ARCHITECTURES)}: export to huggingface or orbax"
        )
    is_scaled = config.rope_scaling_factor != 1
    if config.rope_scaling == "dynamic" or (config.rope_scaling == "yarn" and is_scaled and not config.rope_truncate):
        what = "dynamic scaling of RoPE" if config.rope_scaling == "dynamic" else "YaRN without rounding"
        raise UserError(f"export: llama.cpp has no {what}; export to huggingface or orbax")


def write_config(writer: "GGUFWriter", config: LlamaConfig) -> None:
    """Adds the architecture to the metadata of a GGUF file; the network is one that `check_gguf_expressible` passes."""
    from gguf import RopeScalingType

    sizes: Mapping[Any, int] = {
        writer.add_context_length: config.max_position,
        writer.add_embedding_length: config.dim,
        writer.add_block_count: config.num_layers,
        writer.add_feed_forward_length: config.mlp_dim,
        writer.add_head_count: config.num_heads,
        writer.add_head_count_kv: config.num_kv_heads,
        writer.add_key_length: config.head_dim,
        writer.add_value_length: config.head_dim,
        writer.add_rope_dimension_count: config.head_dim,
        writer.add_vocab_size: config.vocab_size,
    }
    for add, size in sizes.items():
        add(size)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_rope_freq_base(config.rope_theta)
    if config.rope_scaling_factor == 1 or config.rope_scaling == "llama3":
        return
    writer.add_rope_scaling_type(RopeScalingType(config.rope_scaling))
    writer.add_rope_scaling_factor(config.rope_scaling_factor)
    if config.rope_scaling == "yarn":
        writer.add_rope_scaling_orig_ctx_len(config.rope_original_max_position)
        writer.add_rope_scaling_yarn_beta_fast(config.rope_beta_fast)
        writer.add_rope_scaling_yarn_beta_slow(config.rope_beta_slow)
        if config.rope_attention_factor:
            own = config.rope_attention_factor / yarn_magnitude(config.rope_scaling_factor)
            writer.add_rope_scaling_attn_factors(own)
