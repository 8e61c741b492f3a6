"""Settings of fine-tuning on conversations and of preference optimisation."""

from collections.abc import Mapping

from allam_jax.settings import Section, entries, setting

LEARNED = ("augmented", "all", "last")
TOO_LONG = ("whole_turns", "skip", "cut")


class ConversationSourceSettings(Section):
    """Conversations, or pairs of them, of one language."""

    path: str = setting(
        "", "JSON Lines, JSON or Parquet: a file, folder or pattern; or a saved Hugging Face dataset", path="chats"
    )
    language: str = setting("", "label of the held-out losses, such as ar; empty: the name of the source")


class ConversationSettings(Section, name="conversations"):
    """Which conversations are read, and how they become rows."""

    sources: Mapping[str, ConversationSourceSettings] = entries("base.conversations(...): what is read")
    template: str = setting(
        "",
        "chat template: allam, chatml, llama2, llama3 or a .jinja file; empty: the tokenizer's",
        path="template",
    )
    learned: str = setting(
        "augmented",
        "augmented: n turns give n samples, the k-th with turns 1 to k and its last reply learned (Figure 11 of the "
        "paper); all: one sample with all replies learned; last: one with the last reply learned",
        choices=LEARNED,
    )
    too_long: str = setting(
        "whole_turns",
        "longer than data.seq_len: whole_turns keeps the turns that fit, skip leaves it out, cut cuts a reply",
        choices=TOO_LONG,
    )
    packed: bool = setting(True, "samples share rows (best fit); otherwise each has a row of its own")
    epochs: float = setting(3.0, "how often every sample is seen; 0: train.steps says how long", least=0, most=1e6)
    held_out_share: float = setting(0.01, "of the conversations, by a hash of their text", least=0, below=1)
    max_bad_share: float = setting(0.05, "share of rows that cannot be used and ends the run", least=0, most=1)


class SftSettings(Section, name="sft"):
    """Supervised fine-tuning."""

    average: str = setting(
        "token",
        "token: the loss is the mean over all learned tokens of a step; sample: the mean over its samples of their "
        "mean, so that long replies count no more than short ones",
        choices=("token", "sample"),
    )
