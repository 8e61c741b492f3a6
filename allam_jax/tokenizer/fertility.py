"""Fertility: how many tokens a tokenizer spends on a word or a byte of text (ALLaM section 2.2, Figure 1)."""

from collections.abc import Iterable, Mapping

from allam_jax.errors import UserError
from allam_jax.tokenizer.tokenizer import Tokenizer

FertilityTable = dict[str, dict[str, dict[str, float]]]  # tokenizer -> domain -> what `fertility` gives


def fertility(tokenizer: Tokenizer, texts: Iterable[str]) -> dict[str, float]:
    """Counts over all texts: words (between white space), bytes (UTF-8), tokens; and their ratios.

    tokens_per_word and tokens_per_byte are sums over sums, not means of ratios. UserError if there is no word.
    """
    texts = list(texts)
    words = sum(len(text.split()) for text in texts)
    size = sum(len(text.encode()) for text in texts)
    if not words:
        raise UserError("fertility: the texts have no word; check the sources")
    tokens = sum(map(len, tokenizer.encode_batch(texts)))
    return {
        "tokens_per_word": tokens / words,
        "tokens_per_byte": tokens / size,
        "words": words,
        "bytes": size,
        "tokens": tokens,
    }


def fertility_table(tokenizers: Mapping[str, Tokenizer], domains: Mapping[str, Iterable[str]]) -> FertilityTable:
    """`fertility` of every tokenizer on every domain (such as en, ar, code): `table[tokenizer][domain]`."""
    texts = {domain: list(lines) for domain, lines in domains.items()}
    return {
        name: {d: fertility(tokenizer, lines) for d, lines in texts.items()} for name, tokenizer in tokenizers.items()
    }
