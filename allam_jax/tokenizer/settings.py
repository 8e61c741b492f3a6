"""Settings of training and merging tokenizers."""

from collections.abc import Mapping

from allam_jax.corpus.settings import TextsSettings
from allam_jax.settings import Section, entries, setting


class TokenizerTrainingSettings(Section, name="tokenizer_training"):
    """How a SentencePiece BPE model is trained."""

    sources: Mapping[str, TextsSettings] = entries("base.texts(...): what it is trained on")
    vocab_size: int = setting(4096, "pieces, all of them counted", least=1)
    like: str = setting("", "tokenizer whose normaliser and flags are copied", path="tokenizer")
    required_characters: str = setting("", "characters that always become pieces of their own")
    control_tokens: tuple[str, ...] = setting((), "tokens that are one id wherever they are asked for")
    script: str = setting("", 'train the target side of a merge for this script of Unicode, such as "arabic"')


class TokenizerMergeSettings(Section, name="tokenizer_merge"):
    """How a language's pieces are added to a base tokenizer."""

    base: str = setting("", "directory of the base tokenizer", path="tokenizer")
    target: str = setting("", "directory of the tokenizer whose pieces are added", path="tokenizer")
    script: str = setting("arabic", "only pieces with a character of this script are added")
    control_tokens: tuple[str, ...] = setting(("<|im_start|>", "<|im_end|>"), "control tokens that are added")
    sources: Mapping[str, TextsSettings] = entries("base.texts(...): held-out lines for the proof and the fertility")


class TokenizerExtensionSettings(Section, name="tokenizer_extension"):
    """How pieces are added that go on with the base's BPE: of the base's own script, or to byte-level BPE of any."""

    base: str = setting("", "directory of the base tokenizer", path="tokenizer")
    script: str = setting("latin", "the script of Unicode that new pieces are made of")
    sources: Mapping[str, TextsSettings] = entries("base.texts(...): the new language, from which pieces are learned")
    kept: Mapping[str, TextsSettings] = entries("base.texts(...): languages that should stay as they are")
    pieces: int = setting(16_000, "the most that are added", least=1)
    limit: float = setting(0.01, "largest share of the kept lines whose segmentation may change", least=0, most=1)
    control_tokens: tuple[str, ...] = setting(("<|im_start|>", "<|im_end|>"), "control tokens that are added")
    held_out: Mapping[str, TextsSettings] = entries("base.texts(...): lines for the measurement and the fertility")
