"""Which source the next row comes from: weights are shares of rows, and so (rows are full) shares of tokens.

The n-th row of lane l comes from the source whose interval of cumulative weights holds
    u = frac(n / golden ratio + l * sqrt(2) + offset(seed)),
a Kronecker sequence: after n rows every share is right to within a few rows, in every lane and from the first batch on,
where independent draws would be off by the square root of n. The choice needs no state but n.

Grain's own `IterDataset.mix` rounds weights to integers of which the smallest is 100 (0.55 to 0.45 becomes 122 to 99 or
100), takes the same source at the same moment in every lane, and cannot take up a state once the sources have changed.
"""

import bisect
import hashlib
import itertools
import math
from collections.abc import Mapping
from typing import Any

import grain

from allam_jax.data.batch import Batch
from allam_jax.data.packing import PackedRows
from allam_jax.errors import UserError

# 2^64 / golden ratio, and the fractional part of sqrt(2) in units of 2^-64.
_GOLDEN = 0x9E3779B97F4A7C15
_SQRT2 = 0x6A09E667F3BCC909


def check_weights(weights: Mapping[str, float]) -> None:
    """UserError unless there is a source, every weight is finite and not negative, and one is positive."""
    if not weights:
        raise UserError("data: no sources; expected at least one")
    for name, weight in weights.items():
        if not (math.isfinite(weight) and weight >= 0):
            raise UserError(f"data: weight of source {name} is {weight}; expected a number of at least 0")
    if not any(weights.values()):
        raise UserError(f"data: the weights of all sources ({', '.join(weights)}) are 0; give one a positive weight")


def source_of_row(row: int, *, lane: int, seed: int, weights: Mapping[str, float]) -> str:
    """Name of the source of a lane's n-th row; see the formula above."""
    offset = int.from_bytes(hashlib.blake2b(f"{seed}:mixture".encode(), digest_size=8).digest())
    point = (row * _GOLDEN + lane * _SQRT2 + offset) % 2**64 / 2**64
    ends = list(itertools.accumulate(weights.values()))
    # Rounding may put the point at the very end: then the last source with a positive weight takes it.
    index = min(bisect.bisect_right(ends, point * ends[-1]), bisect.bisect_left(ends, ends[-1]))
    return list(weights)[index]


class MixedRows(grain.IterDataset):
    """The rows of one lane, drawn from its sources by weight, with `source_ids` filled in."""

    def __init__(self, parents: Mapping[str, PackedRows], *, weights: Mapping[str, float], lane: int, seed: int):
        """`weights` are those to start with; see `MixedRowsIterator.weights`."""
        super().__init__(list(parents.values()))
        self.sources = dict(parents)
        self.weights = dict(weights)
        self.lane = lane
        self.seed = seed

    def __iter__(self) -> "MixedRowsIterator":
        """Starts with the first row."""
        return MixedRowsIterator(self)


class MixedRowsIterator(grain.DatasetIterator):
    """The rows of a lane.

    Attributes:
      weights: Of the rows to come; to be set where a new phase begins. A stretch of the sequence has the right shares
        wherever it begins, so the count of rows goes on.
    """

    def __init__(self, dataset: MixedRows):
        self._iterators = {name: iter(rows) for name, rows in dataset.sources.items()}
        super().__init__(list(self._iterators.values()))
        self._dataset = dataset
        self._row = 0
        self.weights = dataset.weights
        self._source_ids = {name: index for index, name in enumerate(dataset.sources)}

    def __next__(self) -> Batch:
        """The next row, [seq_len]."""
        mixture = self._dataset
        name = source_of_row(self._row, lane=mixture.lane, seed=mixture.seed, weights=self.weights)
        row = next(self._iterators[name])
        row["source_ids"][:] = self._source_ids[name]
        self._row += 1
        return row

    def get_state(self) -> dict[str, Any]:
        """Rows drawn, and the position in every source."""
        sources = {name: iterator.get_state() for name, iterator in self._iterators.items()}
        return {"row": self._row, "sources": sources}

    def set_state(self, state: dict[str, Any]) -> None:
        """Sources that the state does not know start at their beginning; those that are gone are forgotten."""
        self._row = state["row"]
        for name, iterator in self._iterators.items():
            iterator.set_state(state["sources"].get(name, {"document": 0, "offset": 0}))
