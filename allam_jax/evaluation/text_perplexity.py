"""Log-likelihoods of whole texts, as perplexity and as bits per byte."""

import collections
import math
from collections.abc import Sequence
from typing import NamedTuple

from allam_jax.evaluation.continuations import TextEncoder
from allam_jax.evaluation.likelihood import Likelihood, Pair


class TextScore(NamedTuple):
    """A text under a model: its negative log-likelihood, and its length in tokens and in UTF-8 bytes."""

    nats: float
    tokens: int
    size: int

    @property
    def perplexity(self) -> float:
        """exp of the mean negative log-likelihood of a token."""
        return math.exp(self.nats / self.tokens)

    @property
    def bits_per_byte(self) -> float:
        """Negative log-likelihood of a byte in bits, which can be compared across tokenizers."""
        return self.nats / (math.log(2) * self.size)


def text_scores(texts: Sequence[str], *, likelihood: Likelihood, encoder: TextEncoder) -> list[TextScore]:
    """The score of each text; one without tokens has no perplexity.

    The first token is predicted from the begin-of-text token. A text that is longer than the model's context is read in
    windows of it, each of which begins behind the last token of the one before.
    """
    windows, owners, lengths = [], [], []
    for number, text in enumerate(texts):
        ids = encoder.plain(text)
        lengths.append(len(ids))
        for start in range(0, len(ids), likelihood.max_length):
            before = ids[start - 1] if start else encoder.prefix_id
            windows.append(Pair((before,), tuple(ids[start : start + likelihood.max_length])))
            owners.append(number)
    sums = collections.defaultdict[int, float](float)
    for owner, score in zip(owners, likelihood(windows), strict=True):
        sums[owner] -= score.logprob
    sizes = (len(text.encode()) for text in texts)
    return [TextScore(sums[n], tokens, size) for n, (tokens, size) in enumerate(zip(lengths, sizes, strict=True))]
