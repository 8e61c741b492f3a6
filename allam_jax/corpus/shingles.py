"""Word n-grams as 64-bit numbers: words are hashed, then n neighbours are combined.

Words are hashed by XXH3, n neighbours by a polynomial in an odd base modulo 2^64, and the result is mixed. Two
different n-grams have the same number with a probability of about 2^-64.
"""

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np
import xxhash

BASE = np.uint64(0x9E3779B97F4A7C15)


@dataclasses.dataclass(frozen=True)
class HashedWords:
    """The words of several documents as numbers, one document after another.

    Attributes:
        flat: uint64 [all words].
        lengths: words of each document, int64 [documents].
    """

    flat: np.ndarray
    lengths: np.ndarray

    @classmethod
    def of(cls, documents: Sequence[Sequence[str]]) -> "HashedWords":
        """Hashes the words of documents. One call for many documents is faster than one for each."""
        lengths = np.fromiter(map(len, documents), np.int64, len(documents))
        words = itertools.chain.from_iterable(documents)
        return cls(np.fromiter(map(_WORD_HASHES.__getitem__, words), np.uint64, lengths.sum()), lengths)

    def shingles(self, n: int) -> list[np.ndarray]:
        """The n-grams of each document in order and with repeats, uint64 `[words - n + 1]`; none of a shorter one."""
        # Treats all documents as one; the n-grams across a border are left out below.
        combined = self.flat[: max(0, len(self.flat) - n + 1)].copy()
        for offset in range(1, n):
            combined *= BASE
            combined += self.flat[offset : offset + len(combined)]
        combined = mix(combined)
        counts = np.maximum(self.lengths - n + 1, 0)
        starts = np.cumsum(self.lengths) - self.lengths
        return [combined[start : start + count] for start, count in zip(starts.tolist(), counts.tolist(), strict=True)]


def mix(values: np.ndarray) -> np.ndarray:
    """The last step of SplitMix64: a bijection in which every output bit depends on all input bits."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


class _WordHashes(dict[str, int]):
    """XXH3 of words, cached: a corpus repeats most of its words, and a dict is faster than `functools.lru_cache`."""

    def __missing__(self, word: str) -> int:
        if len(self) >= 1 << 18:
            self.clear()
        value = self[word] = xxhash.xxh3_64_intdigest(word.encode())
        return value


_WORD_HASHES = _WordHashes()
