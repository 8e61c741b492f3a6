"""Which annotated pairs a worker is trained on, and the conversations that it is trained on."""

import collections
import math
from collections.abc import Sequence

from allam_jax.evaluation.likelihood import Likelihood, Pair
from allam_jax.files import unit_hash

RANDOM, LOW, HIGH = CHOICES = ("random", "low_perplexity", "high_perplexity")


def perplexities(texts_ids: Sequence[Sequence[int]], *, likelihood: Likelihood, prefix_id: int) -> list[float]:
    """The perplexity of each text: exp of the mean negative log-likelihood of its tokens, the first after `prefix_id`.

    A text that is longer than the model's context is read in windows, each behind the last token of the one before.
    """
    windows, owners = [], []
    for number, ids in enumerate(texts_ids):
        length = likelihood.max_length - 1
        for start in range(0, len(ids), length):
            before = ids[start - 1] if start else prefix_id
            windows.append(Pair((before,), tuple(ids[start : start + length])))
            owners.append(number)
    sums = collections.defaultdict[int, float](float)
    for owner, score in zip(owners, likelihood(windows), strict=True):
        sums[owner] += score.logprob
    return [math.exp(-sums[number] / len(ids)) for number, ids in enumerate(texts_ids)]


def chosen(originals: Sequence[str], values: Sequence[float], *, choice: str, most: int, seed: int) -> list[int]:
    """The numbers of the pairs that are taken, ascending.

    Args:
        originals: of all pairs.
        values: perplexities of their rewrites; empty for a random choice.
        choice: one of `CHOICES`.
        most: pairs at most; 0: all.
        seed: of a random choice.
    """
    draws = values if choice != RANDOM else [unit_hash(f"{seed}:{text}") for text in originals]
    sign = -1 if choice == HIGH else 1
    order = sorted(range(len(originals)), key=lambda number: (sign * draws[number], number))
    return sorted(order[: most or None])
