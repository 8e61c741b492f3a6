"""Shapes of a Llama, options of how it is computed, and the presets of the papers."""

import dataclasses
from typing import NamedTuple

from allam_jax.errors import UserError
from allam_jax.settings import Section, setting
from kernels.attention.backends import BACKENDS


class Family(NamedTuple):
    """What the networks of one Hugging Face `model_type` have beside those of Llama."""

    qkv_bias: bool = False  # biases are added to q, k and v
    qk_norm: bool = False  # every head of q and k is normalised, with one scale for all heads


FAMILIES = {
    "llama": Family(),
    "internlm3": Family(),
    "iquestcoder": Family(),
    "mistral": Family(),
    "qwen2": Family(qkv_bias=True),
    "qwen3": Family(qk_norm=True),
    "seed_oss": Family(qkv_bias=True),
}
ROPE_SCALINGS = ("llama3", "linear", "dynamic", "yarn")


class LlamaConfig(Section, name="model"):
    """The architecture, on which weights and code must agree. It is stored as `model.json`."""

    model_type: str = setting(
        "llama",
        "of exports; qwen2 and seed_oss have biases of q, k and v, qwen3 norms of q and k",
        choices=tuple(FAMILIES),
    )
    vocab_size: int = setting(..., "ids the tokenizer can produce; 0 in a config takes the tokenizer's", least=0)
    vocab_multiple: int = setting(..., "rows of the embedding and the head are padded up to a multiple of it", least=1)
    dim: int = setting(..., "width of the residual stream", least=1)
    num_layers: int = setting(..., "layers", least=1, most=10_000)
    num_heads: int = setting(..., "query heads", least=1)
    num_kv_heads: int = setting(..., "key/value heads; they divide the query heads", least=1)
    head_dim: int = setting(..., "size of a head; even", least=2)
    mlp_dim: int = setting(..., "feed-forward width", least=1)
    tie_embeddings: bool = setting(..., "whether the embedding is the head too")
    norm_eps: float = setting(..., "added to the mean square in norms", above=0, most=1)
    rope_theta: float = setting(..., "base of the rotary frequencies", least=1)
    rope_scaling: str = setting("llama3", "how longer contexts change the frequencies", choices=ROPE_SCALINGS)
    rope_scaling_factor: float = setting(1.0, "by which the context grows; 1: none", above=0)
    rope_low_freq_factor: float = setting(1.0, "Llama-3: longer wavelengths are stretched by the factor", above=0)
    rope_high_freq_factor: float = setting(4.0, "Llama-3: shorter wavelengths are kept", above=0)
    rope_original_max_position: int = setting(8192, "Llama-3 and YaRN: the context before scaling", least=1)
    rope_beta_fast: float = setting(32.0, "YaRN: dimensions with more turns in that context are kept", above=0)
    rope_beta_slow: float = setting(1.0, "YaRN: dimensions with fewer turns are stretched by the factor", above=0)
    rope_truncate: bool = setting(True, "YaRN: whether the range between is rounded outwards to whole dimensions")
    rope_attention_factor: float = setting(
        0.0, "YaRN: multiplies sines and cosines; 0: 0.1 ln(factor) + 1, as in the paper", least=0, most=1e3
    )
    max_position: int = setting(4096, "longest context it was trained on; recorded for exports", least=1)
    init_std: float = setting(0.02, "standard deviation of random weights", above=0, most=1e3)

    def check(self) -> None:
        """UserError for heads that do not fit together."""
        if self.num_heads % self.num_kv_heads:
            raise UserError(
                f"config.model.num_heads = {self.num_heads}: expected a multiple of model.num_kv_heads = "
                f"{self.num_kv_heads}"
            )
        if self.rope_low_freq_factor >= self.rope_high_freq_factor:
            raise UserError(
                f"config.model.rope_low_freq_factor = {self.rope_low_freq_factor}: expected less than "
                f"model.rope_high_freq_factor = {self.rope_high_freq_factor}"
            )
        if self.rope_scaling == "yarn" and not (self.rope_beta_slow < self.rope_beta_fast and self.rope_theta > 1):
            raise UserError(
                f"config.model.rope_beta_slow = {self.rope_beta_slow}: YaRN needs less than model.rope_beta_fast = "
                f"{self.rope_beta_fast}, and model.rope_theta above 1"
            )
        if self.rope_scaling == "dynamic" and self.head_dim <= 2:
            raise UserError(f"config.model.head_dim = {self.head_dim}: dynamic NTK scaling needs more than 2")
        if self.head_dim % 2:
            raise UserError(f"config.model.head_dim = {self.head_dim}: rotary embeddings need an even size")

    @classmethod
    def default(cls) -> "LlamaConfig":
        """The tiny preset, with the vocabulary of the tokenizer."""
        return dataclasses.replace(preset("tiny"), vocab_size=0)

    @property
    def qkv_bias(self) -> bool:
        """Whether biases are added to q, k and v."""
        return FAMILIES[self.model_type].qkv_bias

    @property
    def qk_norm(self) -> bool:
        """Whether every head of q and k is normalised before its rotation."""
        return FAMILIES[self.model_type].qk_norm

    @property
    def padded_vocab_size(self) -> int:
        """Rows of the embedding and of the head: `vocab_size` rounded up to `vocab_multiple`."""
        return -(-self.vocab_size // self.vocab_multiple) * self.vocab_multiple

    @property
    def num_parameters(self) -> int:
        """Trained parameters (without padding rows)."""
        tables = self.vocab_size * self.dim * (1 if self.tie_embeddings else 2)
        return self.num_layers * self._layer_matrices + tables + self._num_vectors

    @property
    def _layer_matrices(self) -> int:
        """Elements of the matrices of a layer."""
        attention = self.dim * self.head_dim * (2 * self.num_heads + 2 * self.num_kv_heads)
        return attention + 3 * self.dim * self.mlp_dim

    @property
    def _num_vectors(self) -> int:
        """Elements of norms and biases."""
        biases = self.qkv_bias * (self.num_heads + 2 * self.num_kv_heads) * self.head_dim
        head_norms = self.qk_norm * 2 * self.head_dim
        return self.num_layers * (2 * self.dim + biases + head_norms) + self.dim

    def flops_per_token(self, seq_len: int) -> float:
        """Model FLOPs of one training token: 6 per matmul parameter plus causal attention, 6·L·N·H·T.

        Causal attention counts half of the full square. What remat recomputes is not counted.
        """
        matmul = self.num_layers * self._layer_matrices + self.vocab_size * self.dim
        return 6.0 * matmul + 6.0 * self.num_layers * self.num_heads * self.head_dim * seq_len


class ComputeOptions(Section, name="compute"):
    """How the network is computed. Any options fit any weights; they are not stored with them."""

    compute_dtype: str = setting(
        "float32",
        "of activations, bfloat16 on GPUs; parameters keep their own dtype",
        choices=("float32", "bfloat16", "float16"),
    )
    products: str = setting(
        "",
        "what the operands of products with weights are rounded to, by default compute_dtype; "
        "with bfloat16 beside float32 a step takes half of the time on CPUs that have AMX",
        choices=("", "bfloat16"),
    )
    attention: str = setting("auto", "backend of kernels/attention", choices=BACKENDS)
    remat: str = setting(
        "dots",
        "kept for the backward pass: all, the outputs of matmuls and attention, or only the inputs of layers",
        choices=("none", "dots", "full"),
    )
    scan_unroll: int = setting(1, "layers of a step of the scan; num_layers or more unrolls it fully", least=1)
    dropout_embedding: float = setting(0.0, "dropout rate after the embedding, in training", least=0, below=1)
    dropout_attention: float = setting(0.0, "dropout rate of attention probabilities, in training", least=0, below=1)
    dropout_residual: float = setting(0.0, "dropout rate before each residual sum, in training", least=0, below=1)

    @property
    def has_dropout(self) -> bool:
        """Whether training needs a dropout key."""
        return max(self.dropout_embedding, self.dropout_attention, self.dropout_residual) > 0


def _llama2(dim: int, num_layers: int, num_heads: int, num_kv_heads: int, mlp_dim: int) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=32_000,
        vocab_multiple=128,
        dim=dim,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=dim // num_heads,
        mlp_dim=mlp_dim,
        tie_embeddings=False,
        norm_eps=1e-5,
        rope_theta=10_000.0,
    )


PRESETS: dict[str, LlamaConfig] = {
    "tiny": dataclasses.replace(_llama2(256, 4, 8, 4, 688), vocab_size=4096, max_position=256),
    # 1B: the scale at which the ALLaM paper (section 2.3) compared one language with two.
    "1b": _llama2(2048, 22, 32, 32, 5632),
    "tinyllama_1b": _llama2(2048, 22, 32, 4, 5632),
    "llama2_7b": _llama2(4096, 32, 32, 32, 11_008),
    "llama2_13b": _llama2(5120, 40, 40, 40, 13_824),
    "allam_34b": _llama2(8192, 48, 64, 8, 22_016),
    "llama2_70b": _llama2(8192, 80, 64, 8, 28_672),
    "llama3_8b": dataclasses.replace(
        _llama2(4096, 32, 32, 8, 14_336), vocab_size=128_256, rope_theta=500_000.0, max_position=8192
    ),
    "llama3_1_8b": dataclasses.replace(
        _llama2(4096, 32, 32, 8, 14_336),
        vocab_size=128_256,
        rope_theta=500_000.0,
        rope_scaling_factor=8.0,
        max_position=131_072,
    ),
    "qwen2_5_7b": dataclasses.replace(
        _llama2(3584, 28, 28, 4, 18_944),
        model_type="qwen2",
        vocab_size=152_064,
        norm_eps=1e-6,
        rope_theta=1e6,
        max_position=32_768,
    ),
    "qwen3_4b": dataclasses.replace(
        _llama2(2560, 36, 32, 8, 9728),
        model_type="qwen3",
        vocab_size=151_936,
        head_dim=128,
        tie_embeddings=True,
        norm_eps=1e-6,
        rope_theta=1e6,
        max_position=40_960,
    ),
    "smollm2_135m": dataclasses.replace(
        _llama2(576, 30, 9, 3, 1536),
        vocab_size=49_152,
        tie_embeddings=True,
        rope_theta=100_000.0,
        max_position=8192,
    ),
}


def preset(name: str) -> LlamaConfig:
    """Looks a preset up by name; UserError with the known names otherwise."""
    if name not in PRESETS:
        raise UserError(f"model preset {name!r} is unknown; choose from {', '.join(PRESETS)}")
    return PRESETS[name]
