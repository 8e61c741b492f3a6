"""Byte-pair encoding that goes on from a given segmentation (Sennrich et al. 2016, 1508.07909).

The most frequent pair of neighbours is joined wherever it stands, again and again. Words are one linked list of
symbols; every pair knows the places where it has stood. So a merge costs what it changes and nothing is counted twice.
"""

import heapq
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping

Pair = tuple[int, int]
_END = -1  # no neighbour, and the symbol of a place that was joined to the one before it


class MergeLearner:
    """The distinct words of a text, joined further with every merge.

    Args:
        words: the symbols of each word -> its occurrences.
    """

    def __init__(self, words: Mapping[tuple[int, ...], int]):
        self._symbol: list[int] = []
        self._weight: list[int] = []  # occurrences of the word around a place
        self._starts: list[int] = []
        self._next: list[int] = []
        self._before: list[int] = []
        self._count: Counter[Pair] = Counter()
        self._places: defaultdict[Pair, list[int]] = defaultdict(list)
        count, places = self._count, self._places
        for word, occurrences in words.items():
            first = len(self._symbol)
            last = first + len(word) - 1
            self._starts.append(first)
            self._symbol += word
            self._weight += [occurrences] * len(word)
            self._next += [*range(first + 1, last + 1), _END]
            self._before += [_END, *range(first, last)]
            for place, pair in enumerate(zip(word, word[1:], strict=False), start=first):
                count[pair] += occurrences
                places[pair].append(place)

    def learn(self, join: Callable[[Pair], int | None], *, most: int, rarest: int) -> list[Pair]:
        """Learns merges, in order.

        Args:
            join: gives the symbol that a pair becomes, which no word has yet, or None for a pair that must stay apart.
            most: the most that are learned.
            rarest: occurrences of the rarest pair that is joined.
        """
        heap = [(-count, pair) for pair, count in self._count.items() if count >= rarest]
        heapq.heapify(heap)
        learned: list[Pair] = []
        while heap and len(learned) < most:
            count, pair = heapq.heappop(heap)
            now = self._count[pair]
            if now != -count:  # it has become rarer since
                if now >= rarest:
                    heapq.heappush(heap, (-now, pair))
            elif (symbol := join(pair)) is not None:
                learned.append(pair)
                for new in self._join(pair, symbol):
                    if self._count[new] >= rarest:
                        heapq.heappush(heap, (-self._count[new], new))
        return learned

    def words(self) -> Iterator[list[int]]:
        """The symbols of each word as they are now, in the order in which the words were given."""
        for place in self._starts:
            word = []
            while place != _END:
                word.append(self._symbol[place])
                place = self._next[place]
            yield word

    def _join(self, pair: Pair, joined: int) -> set[Pair]:
        """Joins a pair wherever it stands, the leftmost of overlapping ones first; returns the pairs that are new."""
        symbol, following, before, count, places = self._symbol, self._next, self._before, self._count, self._places
        first, second = pair
        new: set[Pair] = set()
        for place in places.pop(pair):
            after = following[place]
            if symbol[place] != first or after == _END or symbol[after] != second:
                continue  # another merge has changed it since
            occurrences = self._weight[place]
            left, right = before[place], following[after]
            if left != _END:
                count[symbol[left], first] -= occurrences
                made = symbol[left], joined
                count[made] += occurrences
                places[made].append(left)
                new.add(made)
            if right != _END:
                count[second, symbol[right]] -= occurrences
                made = joined, symbol[right]
                count[made] += occurrences
                places[made].append(place)
                new.add(made)
                before[right] = place
            symbol[place], symbol[after], following[place] = joined, _END, right
        del count[pair]
        return new
