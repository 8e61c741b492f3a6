"""Shapes of a Llama, options of how it is computed, and the presets of the papers."""

import dataclasses

from allam_jax.errors import UserError
from kernels.attention.api import BACKENDS


@dataclasses.dataclass(frozen=True, kw_only=True)
class LlamaConfig:
    """The architecture, on which weights and code must agree. It is stored as `model.json`."""

    vocab_size: int  # ids the tokenizer can produce
    vocab_multiple: int  # embedding and head rows are padded up to a multiple of this
    dim: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    mlp_dim: int
    tie_embeddings: bool
    norm_eps: float
    rope_theta: float
    # Llama-3 frequency scaling; a factor of 1 means none.
    rope_scaling_factor: float = 1.0
    rope_low_freq_factor: float = 1.0
    rope_high_freq_factor: float = 4.0
    rope_original_max_position: int = 8192
    max_position: int = 4096  # longest context it was trained on; recorded for exports
    init_std: float = 0.02

    def __post_init__(self):
        for name in ("vocab_size", "vocab_multiple", "dim", "num_layers", "num_heads", "num_kv_heads", "head_dim"):
            if getattr(self, name) < 1:
                raise UserError(f"model.{name} = {getattr(self, name)}: must be at least 1")
        if self.num_heads % self.num_kv_heads:
            raise UserError(
                f"model.num_heads = {self.num_heads} is not a multiple of model.num_kv_heads = {self.num_kv_heads}"
            )
        if self.head_dim % 2:
            raise UserError(f"model.head_dim = {self.head_dim}: rotary embeddings need an even size")

    @property
    def padded_vocab_size(self) -> int:
        """Rows of the embedding and of the head: `vocab_size` rounded up to `vocab_multiple`."""
        return -(-self.vocab_size // self.vocab_multiple) * self.vocab_multiple

    @property
    def num_parameters(self) -> int:
        """Trained parameters (without padding rows)."""
        attention = self.dim * self.head_dim * (2 * self.num_heads + 2 * self.num_kv_heads)
        layer = attention + 3 * self.dim * self.mlp_dim + 2 * self.dim
        tables = self.vocab_size * self.dim * (1 if self.tie_embeddings else 2)
        return self.num_layers * layer + tables + self.dim

    def flops_per_token(self, seq_len: int) -> float:
        """Model FLOPs of one training token: 6 per matmul parameter plus causal attention, 6·L·N·H·T.

        Causal attention counts half of the full square. What remat recomputes is not counted.
        """
        matmul = self.num_parameters - self.dim * (2 * self.num_layers + 1)
        if not self.tie_embeddings:
            matmul -= self.vocab_size * self.dim  # a look-up, not a matmul
        return 6.0 * matmul + 6.0 * self.num_layers * self.num_heads * self.head_dim * seq_len


@dataclasses.dataclass(frozen=True, kw_only=True)
class ComputeOptions:
    """How the network is computed. Any options fit any weights; they are not stored with them."""

    compute_dtype: str = "float32"  # bfloat16 on GPUs; parameters keep their own dtype
    attention: str = "auto"  # a backend of kernels.attention
    # What is kept for the backward pass: none keeps all, dots matmul outputs and attention, full only layer inputs.
    remat: str = "dots"
    scan_unroll: int = 1  # layers per step of the scan; num_layers or more unrolls it fully
    dropout_embedding: float = 0.0
    dropout_attention: float = 0.0
    dropout_residual: float = 0.0

    def __post_init__(self):
        if self.compute_dtype not in ("float32", "bfloat16", "float16"):
            raise UserError(f"compute.compute_dtype = {self.compute_dtype!r}: expected float32, bfloat16 or float16")
        if self.remat not in ("none", "dots", "full"):
            raise UserError(f"compute.remat = {self.remat!r}: expected none, dots or full")
        if self.attention not in BACKENDS:
            raise UserError(f"compute.attention = {self.attention!r}: expected one of {', '.join(BACKENDS)}")
        if self.scan_unroll < 1:
            raise UserError(f"compute.scan_unroll = {self.scan_unroll}: expected at least 1")
        for name in ("dropout_embedding", "dropout_attention", "dropout_residual"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"compute.{name} = {getattr(self, name)}: expected a rate in [0, 1)")

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
    "llama2_7b": _llama2(4096, 32, 32, 32, 11_008),
    "llama2_13b": _llama2(5120, 40, 40, 40, 13_824),
    "allam_34b": _llama2(8192, 48, 64, 8, 22_016),
    "llama2_70b": _llama2(8192, 80, 64, 8, 28_672),
    "llama3_8b": dataclasses.replace(
        _llama2(4096, 32, 32, 8, 14_336), vocab_size=128_256, rope_theta=500_000.0, max_position=8192
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
