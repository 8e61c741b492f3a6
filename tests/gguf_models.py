"""GGUF files written with the gguf package alone, as llama.cpp's converter writes them."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter

# Hugging Face's names and llama.cpp's, spelled out once more.
_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
# Where a block of a K-quant has its scales, which must be small numbers: (offset, float16 numbers), bytes of a block.
_SCALES = {"Q2_K": (80, 2), "Q3_K": (108, 1), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208, 1)}


def write_llama(path: Path, torch_model: Any, *, kind: str = "F32", tokenizer: dict[str, Any] | None = None) -> None:
    """Writes a model of transformers whose matrices are of a kind; K-quants get random blocks instead of its values."""
    config = torch_model.config
    writer = GGUFWriter(path, config.model_type)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_vocab_size(config.vocab_size)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    rope = config.rope_parameters
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    if rope["rope_type"] == "yarn":
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(rope["factor"])
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    if rope["rope_type"] == "llama3":
        plain = rope["rope_theta"] ** (-np.arange(0, head_dim, 2) / head_dim)
        scaled = torch_model.model.rotary_emb.inv_freq.numpy()
        writer.add_tensor("rope_freqs.weight", (plain / scaled).astype(np.float32))
    for key, (value, add) in (tokenizer or {}).items():
        getattr(writer, f"add_{add}")(key, value)
    tied = config.tie_word_embeddings
    for number, (name, parameter) in enumerate(torch_model.state_dict().items()):
        if name == "lm_head.weight" and tied:
            continue
        values = parameter.float().numpy()
        if config.model_type == "llama" and (".q_proj." in name or ".k_proj." in name):
            shape = (-1, 2, head_dim // 2, *values.shape[1:])
            values = values.reshape(shape).swapaxes(1, 2).reshape(values.shape)
        own = GGMLQuantizationType.F32 if values.ndim == 1 else GGMLQuantizationType[kind]
        stored = _random_blocks(values.shape, own, seed=number) if kind in _SCALES and values.ndim > 1 else None
        stored = gguf.quants.quantize(values, own) if stored is None else stored
        writer.add_tensor(_name(name), np.ascontiguousarray(stored), raw_dtype=own)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _name(name: str) -> str:
    stem, suffix = name.rsplit(".", 1)
    if stem.startswith("model.layers."):
        _, _, layer, stem = stem.split(".", 3)
        return f"blk.{layer}.{_NAMES[stem]}.{suffix}"
    return f"{_NAMES[stem]}.{suffix}"


def _random_blocks(shape: tuple[int, ...], kind: GGMLQuantizationType, *, seed: int) -> np.ndarray:
    block, size = gguf.GGML_QUANT_SIZES[kind]
    rng = np.random.default_rng(seed)
    raw = rng.integers(0, 256, (*shape[:-1], shape[-1] // block, size), np.uint8)
    offset, count = _SCALES[kind.name]
    scales = rng.uniform(1e-4, 1e-3, (*raw.shape[:-1], count)).astype(np.float16)
    raw[..., offset : offset + 2 * count] = scales.view(np.uint8)
    return raw.reshape(*shape[:-1], -1)


def byte_level_metadata(tokenizer: Any, *, pre: str, special: dict[str, int], template: str = "") -> dict[str, Any]:
    """The metadata of a byte-level BPE tokenizer of the tokenizers library, for `write_llama`."""
    import json

    document = json.loads(tokenizer.to_str())
    tokens = [token for token, _ in sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])]
    added = {entry["content"]: 3 if entry["special"] else 4 for entry in document["added_tokens"]}
    found = {
        "tokenizer.ggml.model": ("gpt2", "string"),
        "tokenizer.ggml.pre": (pre, "string"),
        "tokenizer.ggml.tokens": (tokens, "array"),
        "tokenizer.ggml.token_type": ([added.get(token, 1) for token in tokens], "array"),
        "tokenizer.ggml.merges": ([" ".join(merge) for merge in document["model"]["merges"]], "array"),
    }
    found |= {f"tokenizer.ggml.{name}_token_id": (index, "uint32") for name, index in special.items()}
    return found | ({"tokenizer.chat_template": (template, "string")} if template else {})


def sentencepiece_metadata(proto: Any) -> dict[str, Any]:
    """The metadata of a SentencePiece model, for `write_llama`."""
    return {
        "tokenizer.ggml.model": ("llama", "string"),
        "tokenizer.ggml.tokens": ([piece.piece for piece in proto.pieces], "array"),
        "tokenizer.ggml.scores": ([piece.score for piece in proto.pieces], "array"),
        "tokenizer.ggml.token_type": ([int(piece.type) for piece in proto.pieces], "array"),
        "tokenizer.ggml.bos_token_id": (1, "uint32"),
        "tokenizer.ggml.eos_token_id": (2, "uint32"),
        "tokenizer.ggml.unknown_token_id": (0, "uint32"),
    }
