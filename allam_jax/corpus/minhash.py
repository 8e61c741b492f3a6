"""MinHash signatures of documents (Broder 1997) in bands, and the exact Jaccard similarity of two documents.

Shingles are n-grams of `bare_words`, as the numbers of `shingles.py`. Permutation k of the shingles is
x -> a_k x + b_k modulo 2^32 with odd a_k, where x is the upper half of the number. The signature is the minimum over
the shingles for each k. The hash spreads x at random, so each shingle is equally likely to be the minimum.

Two documents of similarity s agree in one value with probability s, and in all r rows of at least one of b bands with
probability 1 - (1 - s^r)^b: for 14 bands of 9 rows 0.44 at s = 0.7 and 0.87 at s = 0.8. Where a sharp threshold is
needed, `jaccard` verifies the pairs.
"""

from collections.abc import Sequence

import numpy as np

from allam_jax.corpus.settings import DedupSettings
from allam_jax.corpus.shingles import BASE, HashedWords, mix

_BLOCK = 1024  # shingles at a time, so that the table of their permutations stays in the processor's cache


class MinHash:
    """Makes signatures. Those of two documents can be compared only if they were made with the same settings.

    Of the `hashes` permutations, the bands use the first `bands * rows` (126 of RedPajama-v2's 128).
    """

    def __init__(self, settings: DedupSettings):
        self.shingle, self.bands, self.rows = settings.shingle, settings.bands, settings.rows
        draws = np.random.default_rng(0).integers(0, 2**32, size=(2, settings.hashes), dtype=np.uint32)
        used = self.bands * self.rows
        self._factors, self._summands = draws[0, :used] | np.uint32(1), draws[1, :used]

    def shingles(self, documents: Sequence[Sequence[str]]) -> list[np.ndarray]:
        """The shingles of each document, given its words, in order and with repeats: uint64 `[words - shingle + 1]`.

        A document with fewer words than a shingle has none. One call for many documents is faster than one for each.
        """
        return HashedWords.of(documents).shingles(self.shingle)

    def signature(self, shingles: np.ndarray) -> np.ndarray:
        """uint32 `[bands * rows]` for a document with at least one shingle."""
        values = (shingles >> np.uint64(32)).astype(np.uint32)
        least = None
        for start in range(0, len(values), _BLOCK):
            permuted = values[start : start + _BLOCK, np.newaxis] * self._factors
            permuted += self._summands
            block = permuted.min(axis=0)
            least = block if least is None else np.minimum(least, block)
        assert least is not None
        return least

    def band_keys(self, signatures: np.ndarray) -> np.ndarray:
        """Turns signatures, uint32 `[..., bands * rows]`, into one key for each band, uint64 `[..., bands]`.

        Two keys of a band are equal if all rows agree; otherwise they are equal with a probability of about 2^-64.
        """
        rows = signatures.reshape(*signatures.shape[:-1], self.bands, self.rows).astype(np.uint64)
        keys = np.zeros(rows.shape[:-1], np.uint64)
        for row in range(self.rows):
            keys = mix(keys * BASE + rows[..., row] + np.uint64(1))
        return keys


def jaccard(first: np.ndarray, second: np.ndarray) -> float:
    """|A and B| / |A or B| of two arrays of shingles, taken as sets."""
    shared = len(np.intersect1d(first, second))
    union = len(np.unique(first)) + len(np.unique(second)) - shared
    return shared / union if union else 0.0
