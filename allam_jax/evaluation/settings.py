"""Settings of evaluations on held-out text."""

from collections.abc import Mapping

from allam_jax.data.settings import SourceSettings
from allam_jax.settings import Section, entries, setting


class EvalSettings(Section, name="eval"):
    """What is evaluated, and in which windows."""

    sources: Mapping[str, SourceSettings] = entries('base.mixture(path=..., split="validation"); named by language')
    every: int = setting(0, "steps between evaluations of a training run; 0 evaluates at the end only", least=0)
    max_bytes: int = setting(0, "text of a source; 0 takes everything", least=0, most=2**53)
    batch_size: int = setting(8, "rows of a batch", least=1)
    seq_len: int = setting(
        0, "tokens of a window; 0: those of a training row, or the longest context that the model knows", least=0
    )
    loss_chunks: int = setting(4, "the logits exist one chunk of the sequence at a time", least=1)
