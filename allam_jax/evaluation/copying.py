"""Copying: whether a model goes on with words that it has just read, in an order that nothing else suggests.

A list of words is read twice. A model that learns from its context spends next to no bits on the second time; one that
does not spends as many as behind a list of other words.
"""

import math
import random
from collections.abc import Sequence

from allam_jax.evaluation.capitals import Scored
from allam_jax.evaluation.choice_scores import wilson


def copying_scores(words: Sequence[str], *, lists: int, length: int, seed: int, score: Scored) -> dict[str, float]:
    """Bits per byte of lists of `length` words behind themselves (`copied`) and behind other words (`other`).

    `saved` is the share of bits that having read them saves; `exact` the share of lists that the model, asked to go on,
    repeats to the last word, with its 95 % interval.
    """
    chance = random.Random(seed)
    distinct = sorted(set(words))
    texts = [" ".join(chance.sample(distinct, length)) for _ in range(2 * lists)]
    pairs = list(zip(texts[:lists], texts[lists:], strict=True))
    copied = score([(f"{text}\n{text.split()[0]}", text[len(text.split()[0]) :]) for text, _ in pairs])
    other = score([(f"{before}\n{text.split()[0]}", text[len(text.split()[0]) :]) for text, before in pairs])
    size = sum(len(text[len(text.split()[0]) :].encode()) for text, _ in pairs) * math.log(2)
    bits = {name: -sum(value for value, _ in found) / size for name, found in (("copied", copied), ("other", other))}
    exact = sum(greedy for _, greedy in copied)
    low, high = wilson(exact, lists)
    saved = 1 - bits["copied"] / bits["other"]
    return bits | {"saved": saved, "exact": exact / lists, "exact_low": low, "exact_high": high}
