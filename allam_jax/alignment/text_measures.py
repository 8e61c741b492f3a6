"""Numbers about texts of conversations and answers."""

from collections.abc import Sequence


def repeated_share(words: Sequence[str], *, n: int = 4) -> float:
    """The share of n-grams that repeat an earlier one: 1 - distinct / all; 0 for a text that has none."""
    grams = list(zip(*(words[start:] for start in range(n)), strict=False))
    return 1 - len(set(grams)) / len(grams) if grams else 0.0
