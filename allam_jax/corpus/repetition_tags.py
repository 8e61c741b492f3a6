"""The tags of Gopher (Rae et al. 2021, section A.1.1 and table A1) and FineWeb that FineWeb-2 filters Arabic with.

Words are `Words.tokens`, where punctuation is a token. FineWeb-2 uses spaCy's tokens, so its published thresholds apply
to slightly different values here. Shares are of the text's characters, as in Gopher.
"""

import functools
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Literal

from allam_jax.corpus.words import Words, ends_sentence

# The stop words in FineWeb-2's configuration for arb_Arab, which are its most frequent Arabic words.
_FREQUENT = "، في من على إلى عام أن مع أو هو عن التي كان بين ما كانت هي المتحدة بعد"
_FREQUENT_ARABIC = frozenset(_FREQUENT.split())


def _duplicate_lines(words: Words, _: object) -> float | None:
    """Share of non-empty lines that repeat an earlier line."""
    lines = [line for line in words.text.split("\n") if line]
    return 1 - len(set(lines)) / len(lines) if lines else None


def _duplicate_line_characters(words: Words, _: object) -> float | None:
    """Characters in lines that repeat an earlier line, as a share of all characters except newlines."""
    lines = [line for line in words.text.split("\n") if line.strip()]
    total = len(words.text.replace("\n", ""))
    repeated = sum(map(len, lines)) - sum(map(len, set(lines)))
    return repeated / total if total else None


def _top_gram(words: Words, _: object, *, n: int) -> float | None:
    """Characters in all occurrences of the most frequent n-gram, as a share of the text's characters."""
    counts = Counter(" ".join(gram) for gram in grams(words.tokens, n))
    if not counts:
        return 0.0
    gram, count = counts.most_common(1)[0]
    return len(gram) * count / len(words.text)


def _duplicate_grams(words: Words, _: object, *, n: int) -> float | None:
    """Characters in n-grams that occurred before, each counted once, as a share of the text's characters."""
    seen: set[tuple[str, ...]] = set()
    tokens, start, repeated = words.tokens, 0, 0
    while start <= len(tokens) - n:
        gram = tuple(tokens[start : start + n])
        if gram in seen:
            repeated += sum(map(len, gram))
            start += n
        else:
            seen.add(gram)
            start += 1
    return repeated / len(words.text) if words.text else None


def grams(tokens: Sequence[str], n: int) -> zip:
    """The n-grams of the tokens, as tuples."""
    return zip(*(tokens[start:] for start in range(n)), strict=False)


def _finished_lines(words: Words, _: object) -> float | None:
    """Share of non-empty lines that end a sentence."""
    lines = [line.strip() for line in words.text.split("\n") if line.strip()]
    return sum(map(ends_sentence, lines)) / len(lines) if lines else None


def _newlines(words: Words, _: object) -> float | None:
    return words.text.count("\n") / len(words.tokens) if words.tokens else None


def _letters(words: Words, _: object) -> float | None:
    """Share of tokens with a letter. Punctuation counts as a token, as in Gopher."""
    return sum(any(map(str.isalpha, token)) for token in words.tokens) / len(words.tokens) if words.tokens else None


def _mean_length(words: Words, _: object) -> float | None:
    real = [token for token in words.tokens if any(map(str.isalnum, token))]
    return sum(map(len, real)) / len(real) if real else None


def _frequent(words: Words, _: object) -> float | None:
    """Number of different words of FineWeb-2's Arabic list that occur."""
    return float(len(_FREQUENT_ARABIC.intersection(words.tokens)))


TAGS: dict[str, tuple[Callable[[Words, object], float | None], Literal["share", "count"]]] = {
    "gopher_duplicate_line_share": (_duplicate_lines, "share"),
    "fineweb_duplicate_line_characters": (_duplicate_line_characters, "share"),
    **{f"gopher_top_{n}_gram_share": (functools.partial(_top_gram, n=n), "share") for n in (2, 3, 4)},
    **{
        f"gopher_duplicate_{n}_gram_share": (functools.partial(_duplicate_grams, n=n), "share")
        for n in (5, 6, 7, 8, 9, 10)
    },
    "fineweb_finished_line_share": (_finished_lines, "share"),
    "fineweb_newline_ratio": (_newlines, "share"),
    "gopher_letter_word_share": (_letters, "share"),
    "gopher_mean_word_length": (_mean_length, "count"),
    "fineweb_frequent_arabic_words": (_frequent, "count"),
}
