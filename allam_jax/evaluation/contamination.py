"""How much of the items of suites occurs in training texts, by word n-grams (`corpus/ngram_index.py`).

An item is *touched* if at least a given share of the n-grams of its question occurs anywhere in the texts. A question
shorter than an n-gram counts as one of its own length; one of fewer than five words is never found.
"""

import dataclasses
import itertools
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from allam_jax.corpus.ngram_index import NgramIndex

_DOCUMENTS = 256  # looked at in one call


@dataclasses.dataclass(frozen=True)
class Overlap:
    """What of some items occurs in some texts.

    Attributes:
        shares: of each item's n-grams, the share that occurs, float64 [items].
        searchable: which items have enough words to be found, bool [items].
        documents, bytes: that were read.
        documents_with: how many of them hold any n-gram of an item.
    """

    shares: np.ndarray
    searchable: np.ndarray
    documents: int
    bytes: int
    documents_with: int


def overlap(index: NgramIndex, documents: Iterable[str]) -> Overlap:
    """Looks for the n-grams of the indexed items in documents, which are read once and never all in memory."""
    found = np.zeros(index.grams, bool)
    count = size = hits = 0
    texts = iter(documents)
    while some := list(itertools.islice(texts, _DOCUMENTS)):
        for text, matches in zip(some, index.find(some), strict=True):
            found[matches.gram] = True
            hits += len(matches.gram) > 0
            size += len(text.encode())
        count += len(some)
    return Overlap(index.shares(found), index.counts > 0, count, size, hits)


def together(parts: Mapping[str, Overlap]) -> np.ndarray:
    """Of each item, the largest share that occurs in one of several sets of texts, float64 [items]."""
    return np.max(np.stack([part.shares for part in parts.values()]), axis=0)


def touched(ids: Sequence[str], shares: np.ndarray, *, share: float) -> dict[str, float]:
    """The items that are touched, each with its share, the largest first."""
    order = np.argsort(-shares, kind="stable")
    return {ids[item]: float(shares[item]) for item in order.tolist() if shares[item] >= share}
