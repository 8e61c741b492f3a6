"""What a part's documents went through, as numbers that add up: counts, histograms, samples, times of each step."""

import heapq
import math
from collections.abc import Mapping
from typing import Any

from allam_jax.corpus.rules import PARETO, Rule
from allam_jax.corpus.tags import TAGS
from allam_jax.files import unit_hash

SAMPLES = 10
SHARE_BINS = 50
_EXCERPT = 400  # characters


class Tally:
    """Counts of one part, a tree of plain dicts in `values`.

    Leaves are numbers, but under `samples` (lists of at most `SAMPLES` rows) and `files`. `dropped` holds
    (id, reasons) of every document that went; `enough` asks the reading step to stop.
    """

    def __init__(self):
        self.values: dict[str, Any] = {}
        self.dropped: list[tuple[str, list[str]]] = []
        self.enough = False

    def clear(self) -> None:
        """Starts again."""
        self.values.clear()
        self.dropped.clear()
        self.enough = False

    def add(self, *path: str, amount: float = 1) -> None:
        """Adds to the number at this place of the tree."""
        *nodes, leaf = path
        node = self.values
        for key in nodes:
            node = node.setdefault(key, {})
        node[leaf] = node.get(leaf, 0) + amount

    def tag(self, name: str, value: float | None) -> None:
        """Adds a value to the histogram of a tag."""
        self.add("tags", name, "undefined" if value is None else str(bin_of(name, value)))

    def sample(self, kind: str, name: str, *, rank: tuple[float, float], row: Mapping[str, Any]) -> None:
        """Keeps the row if its rank is among the smallest; ranks are functions of the document alone."""
        rows = self.values.setdefault("samples", {}).setdefault(kind, {}).setdefault(name, [])
        entry = [*rank, {**row, "text": row["text"][:_EXCERPT]}]
        if len(rows) < SAMPLES:
            rows.append(entry)
        elif tuple(rank) < max((tuple(other[:2]) for other in rows), default=()):
            rows.remove(max(rows, key=lambda other: tuple(other[:2])))
            rows.append(entry)

    def sample_kept(self, rule: Rule, value: float | None, *, id_: str, text: str) -> None:
        """Of the documents that a rule lets pass, those that it nearly dropped; any, for a rule that draws."""
        distance = 0.0 if value is None or rule.drop == PARETO else abs(value - rule.threshold)
        self.sample("kept", rule.name, rank=(distance, unit_hash(id_)), row={"id": id_, "text": text, "value": value})

    def sample_dropped(self, name: str, value: float | None, *, id_: str, text: str) -> None:
        """Of the documents that a rule drops, any."""
        self.sample("dropped", name, rank=(unit_hash(id_), 0.0), row={"id": id_, "text": text, "value": value})


def bin_of(tag: str, value: float) -> int:
    """Number of a histogram's bin: one of `SHARE_BINS` equal ones for shares, quarter octaves for counts."""
    if TAGS[tag].kind == "share":
        return min(max(int(value * SHARE_BINS), 0), SHARE_BINS - 1)
    return int(4 * math.log2(max(value, 0.0) + 1.0))


def bin_start(tag: str, number: int) -> float:
    """Smallest value in a bin."""
    return number / SHARE_BINS if TAGS[tag].kind == "share" else 2.0 ** (number / 4) - 1.0


def merge(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """The tally of two parts together."""
    merged = dict(first)
    for key, value in second.items():
        if key not in merged:
            merged[key] = value
        elif isinstance(value, Mapping):
            merged[key] = merge(merged[key], value)
        elif isinstance(value, list):
            merged[key] = heapq.nsmallest(SAMPLES, [*merged[key], *value], key=lambda row: tuple(row[:2]))
        else:
            merged[key] = merged[key] + value
    return merged
