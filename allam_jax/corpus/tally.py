"""Counts of what happened to the documents of a part: numbers, histograms, samples and times that can be added up."""

import heapq
import math
from collections.abc import Mapping
from typing import Any

from allam_jax.corpus.rules import PARETO
from allam_jax.corpus.settings import RuleSettings
from allam_jax.corpus.tags import TAGS
from allam_jax.files import unit_hash

SAMPLES = 10
SHARE_BINS = 50
_EXCERPT = 400  # characters


class Tally:
    """Counts of one part, as a tree of plain dicts in `values`.

    The leaves are numbers, except under `samples` (lists of at most `SAMPLES` rows) and `files`. `dropped` holds
    (id, reasons) of every document that was dropped. `enough` asks the reading step to stop.
    """

    def __init__(self):
        self.values: dict[str, Any] = {}
        self.dropped: list[tuple[str, list[str]]] = []
        self.enough = False

    def clear(self) -> None:
        """Removes all counts, for the next part."""
        self.values.clear()
        self.dropped.clear()
        self.enough = False

    def add(self, *path: str, amount: float = 1) -> None:
        """Adds to the number at this path of the tree, which starts at zero."""
        *nodes, leaf = path
        node = self.values
        for key in nodes:
            node = node.setdefault(key, {})
        node[leaf] = node.get(leaf, 0) + amount

    def tag(self, name: str, value: float | None) -> None:
        """Adds a value to the histogram of a tag."""
        self.add("tags", name, "undefined" if value is None else str(bin_of(name, value)))

    def sample_kept(self, name: str, rule: RuleSettings, value: float | None, *, id_: str, text: str) -> None:
        """Samples a document that a rule keeps: those nearest to the threshold, or any if the rule draws at random."""
        distance = 0.0 if value is None or rule.drop == PARETO else abs(value - rule.threshold)
        self._sample("kept", name, (distance, unit_hash(id_)), id_=id_, text=text, value=value)

    def sample_dropped(self, name: str, value: float | None, *, id_: str, text: str) -> None:
        """Samples a document that was dropped for the reason `name`, at random."""
        self._sample("dropped", name, (unit_hash(id_), 0.0), id_=id_, text=text, value=value)

    def _sample(
        self, kind: str, name: str, rank: tuple[float, float], *, id_: str, text: str, value: float | None
    ) -> None:
        """Keeps the documents of the smallest ranks. A rank depends on its document alone, so parts can be merged."""
        rows = self.values.setdefault("samples", {}).setdefault(kind, {}).setdefault(name, [])
        largest = max(rows, key=_rank) if len(rows) == SAMPLES else None
        if largest is not None:
            if rank >= _rank(largest):
                return
            rows.remove(largest)
        rows.append([*rank, {"id": id_, "text": text[:_EXCERPT], "value": value}])


def bin_of(tag: str, value: float) -> int:
    """The number of a value's bin: `SHARE_BINS` equal bins for shares, four bins for each doubling for counts."""
    if TAGS[tag].kind == "share":
        return int(min(max(value, 0.0) * SHARE_BINS, SHARE_BINS - 1))
    return int(4 * math.log2(max(value, 0.0) + 1.0))


def bin_start(tag: str, number: int) -> float:
    """The smallest value that falls into a bin."""
    return number / SHARE_BINS if TAGS[tag].kind == "share" else 2.0 ** (number / 4) - 1.0


def merge_tallies(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """The tally of two parts together: numbers are added, and the samples of smallest rank are kept."""
    merged = dict(first)
    for key, value in second.items():
        if key not in merged:
            merged[key] = value
        elif isinstance(value, Mapping):
            merged[key] = merge_tallies(merged[key], value)
        elif isinstance(value, list):
            merged[key] = heapq.nsmallest(SAMPLES, [*merged[key], *value], key=_rank)
        else:
            merged[key] = merged[key] + value
    return merged


def _rank(row: list[Any]) -> tuple[Any, ...]:
    return tuple(row[:2])
