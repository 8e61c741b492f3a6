"""Settings of the vocabulary expansion."""

from collections.abc import Mapping

from allam_jax.corpus.settings import TextsSettings
from allam_jax.errors import UserError
from allam_jax.settings import Section, entries, nested, setting

DISTILLATION = "token_distillation"
METHODS = ("subword_mean", "random", "mean_all", "first_piece", "last_piece", "mean_noise")


class DistillationSettings(Section):
    """How rows of new tokens learn to lead to the hidden states of the old pieces."""

    sources: Mapping[str, TextsSettings] = entries("base.texts(...): text of the new language")
    steps: int = setting(200, "updates", least=1)
    batch_size: int = setting(16, "passages of an update", least=1)
    seq_len: int = setting(128, "the most tokens of a passage, in the old vocabulary", least=8)
    learning_rate: float = setting(1e-3, "of Adam; falls as a cosine", above=0, most=1)


class ExpandSettings(Section, name="expand"):
    """How the embeddings of new tokens start."""

    method: str = setting("subword_mean", "of the embedding table", choices=(*METHODS, DISTILLATION))
    head_method: str = setting(
        "", "of the output table; empty: the same, beside token_distillation subword_mean", choices=("", *METHODS)
    )
    noise_std: float = setting(
        0.02, "mean_noise: standard deviation, relative to that of the base table", least=0, most=1e3
    )
    covariance_scale: float = setting(
        1e-9, "mean_all: 1e-9 as Hugging Face; 1 is the full spread of the base's rows", least=0, most=1e3
    )
    distillation: DistillationSettings = nested(DistillationSettings, "token_distillation: its text and steps")


LORA_TARGETS = ("query", "key", "value", "output", "gate", "up", "down")


class LoraSettings(Section, name="lora"):
    """Low-rank adapters, trained in place of the weights that they are beside."""

    rank: int = setting(0, "of the adapters; 0: none, all of `trainable` is trained", least=0, most=4096)
    alpha: float = setting(16.0, "an adapter counts alpha / sqrt(rank), or alpha / rank", above=0, most=1e4)
    rank_stabilised: bool = setting(True, "alpha / sqrt(rank), so that a larger rank learns no more slowly")
    targets: tuple[str, ...] = setting(LORA_TARGETS, "weights that get an adapter", choices=LORA_TARGETS)

    def check(self) -> None:
        """UserError for adapters of nothing."""
        if self.rank and not self.targets:
            raise UserError(f"config.lora.targets = (): expected some of {', '.join(LORA_TARGETS)}, or rank 0")
