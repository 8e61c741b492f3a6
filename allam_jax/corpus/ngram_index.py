"""Which word n-grams of a text occur in a set of texts, and where: near-copies of evaluation items, for example.

Words are `bare_words`: case, punctuation, Arabic vowel marks and tatweel make no difference. A text of the set that is
shorter than n words counts as one n-gram of its own length, so short questions are found too. Below `least` words a
text is not indexed, because others have the same words by chance.

The n-grams of all indexed texts are numbered through, one text after another. So what is found of them in many
documents adds up in one boolean array, for which `shares` gives the share found of every text:

    index = NgramIndex.build(questions, n=13)
    found = np.zeros(index.grams, bool)
    for matches in index.find(documents):
        found[matches.gram] = True
    index.shares(found)
"""

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np

from allam_jax.corpus.shingles import HashedWords
from allam_jax.corpus.words import bare_words


@dataclasses.dataclass(frozen=True)
class Matches:
    """The n-grams of one document that occur in the index, one entry for each occurrence in an indexed text.

    Attributes:
        words: number of words of the document.
        at: the n-gram's first word in the document, int64 [matches], ascending.
        length: the n-gram's number of words, int64 [matches].
        gram: its number among all indexed n-grams, int64 [matches].
    """

    words: int
    at: np.ndarray
    length: np.ndarray
    gram: np.ndarray

    @property
    def share(self) -> float:
        """The share of the document's words that lie in an n-gram of the index."""
        steps = np.zeros(self.words + 1, np.int64)
        np.add.at(steps, self.at, 1)
        np.add.at(steps, self.at + self.length, -1)
        return float(np.count_nonzero(np.cumsum(steps[:-1]))) / self.words if self.words else 0.0


@dataclasses.dataclass(frozen=True)
class NgramIndex:
    """The n-grams of a set of texts. Make it with `build`.

    Attributes:
        counts: n-grams of each text, 0 for one that is too short, int64 [texts].
    """

    counts: np.ndarray
    _ends: np.ndarray  # of each text in the numbers of n-grams
    _tables: tuple["_Table", ...]  # one a length

    @classmethod
    def build(cls, texts: Iterable[str], *, n: int, least: int = 5) -> "NgramIndex":
        """Indexes texts.

        Args:
            texts: all are in memory as numbers, 16 bytes a word.
            n: words of an n-gram; GPT-3's check of its benchmarks used 8 to 13.
            least: words of the shortest text that is indexed.
        """
        hashed = HashedWords.of([bare_words(text) for text in texts])
        lengths = np.minimum(hashed.lengths, n)
        lengths[hashed.lengths < least] = 0
        counts = np.where(lengths > 0, hashed.lengths - lengths + 1, 0)
        ends = np.cumsum(counts)
        tables = []
        for length in np.unique(lengths[lengths > 0]).tolist():
            grams = hashed.shingles(length)
            mine = np.flatnonzero(lengths == length).tolist()
            values = np.concatenate([grams[text] for text in mine])
            numbers = np.concatenate([np.arange(ends[text] - counts[text], ends[text]) for text in mine])
            tables.append(_Table.of(values, numbers, length=length))
        return cls(counts, ends, tuple(tables))

    @property
    def grams(self) -> int:
        """The number of indexed n-grams, with repeats."""
        return int(self.counts.sum())

    def find(self, documents: Sequence[str]) -> list[Matches]:
        """What each document has of the index. One call for many documents is faster than one for each."""
        words = [bare_words(document) for document in documents]
        hashed = HashedWords.of(words)
        by_length = [(table, hashed.shingles(table.length)) for table in self._tables]
        return [
            _joined([table.find(grams[place]) for table, grams in by_length], words=len(own))
            for place, own in enumerate(words)
        ]

    def text_of(self, gram: np.ndarray) -> np.ndarray:
        """The numbers of the texts that n-grams belong to."""
        return np.searchsorted(self._ends, gram, side="right")

    def shares(self, found: np.ndarray) -> np.ndarray:
        """The share of each text's n-grams that were found, float64 [texts]; `found` is bool [grams]."""
        before = np.concatenate([[0], np.cumsum(found)])
        hits = before[self._ends] - before[self._ends - self.counts]
        return hits / np.maximum(self.counts, 1)

    def texts_in(self, matches: Matches) -> dict[int, float]:
        """The texts of which a document has n-grams, each with the share of them, the largest share first."""
        grams = np.unique(matches.gram)
        texts, hits = np.unique(self.text_of(grams), return_counts=True)
        shares = hits / self.counts[texts]
        order = np.argsort(-shares, kind="stable")
        return dict(zip(texts[order].tolist(), shares[order].tolist(), strict=True))


@dataclasses.dataclass(frozen=True)
class _Table:
    """All n-grams of one length: sorted values, and the numbers that have them."""

    length: int
    values: np.ndarray
    numbers: np.ndarray

    @classmethod
    def of(cls, values: np.ndarray, numbers: np.ndarray, *, length: int) -> "_Table":
        order = np.argsort(values, kind="stable")
        return cls(length, values[order], numbers[order])

    def find(self, grams: np.ndarray) -> Matches:
        """The matches of a document with these n-grams; `words` is not known here."""
        first = np.searchsorted(self.values, grams)
        there = np.flatnonzero(self.values[np.minimum(first, len(self.values) - 1)] == grams)
        first = first[there]
        counts = np.searchsorted(self.values, grams[there], side="right") - first
        at = np.repeat(there, counts)
        # The occurrences of an n-gram are neighbours: first, first + 1, ...
        within = np.arange(len(at)) - np.repeat(np.cumsum(counts) - counts, counts)
        return Matches(0, at, np.full(len(at), self.length), self.numbers[np.repeat(first, counts) + within])


def _joined(parts: Sequence[Matches], *, words: int) -> Matches:
    at, length, gram = (
        np.concatenate([np.zeros(0, np.int64), *(getattr(part, name) for part in parts)])
        for name in ("at", "length", "gram")
    )
    order = np.argsort(at, kind="stable")
    return Matches(words, at[order], length[order], gram[order])
