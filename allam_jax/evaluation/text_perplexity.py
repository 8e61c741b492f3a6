"""Perplexities of whole texts."""

import collections
import math
from collections.abc import Sequence

from allam_jax.evaluation.continuations import TextEncoder
from allam_jax.evaluation.likelihood import Likelihood, Pair


def perplexities(texts: Sequence[str], *, likelihood: Likelihood, encoder: TextEncoder) -> list[float]:
    """exp of the mean negative log-likelihood of a text's tokens, for each text; none may be empty.

    The first token is predicted from the begin-of-text token. A text that is longer than the model's context is read in
    windows of it, each of which begins behind the last token of the one before.
    """
    windows, owners, sizes = [], [], []
    for number, text in enumerate(texts):
        ids = encoder.plain(text)
        sizes.append(len(ids))
        for start in range(0, len(ids), likelihood.max_length):
            before = ids[start - 1] if start else encoder.prefix_id
            windows.append(Pair((before,), tuple(ids[start : start + likelihood.max_length])))
            owners.append(number)
    sums = collections.defaultdict[int, float](float)
    for owner, score in zip(owners, likelihood(windows), strict=True):
        sums[owner] += score.logprob
    return [math.exp(-sums[number] / size) for number, size in enumerate(sizes)]
