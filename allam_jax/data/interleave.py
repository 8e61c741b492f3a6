"""Chooses the source of each row. Weights are shares of rows and, because rows are full, shares of tokens.

The n-th row of lane l comes from the source whose interval of cumulative weights contains
    u = frac(n / golden ratio + l * sqrt(2) + offset(seed)),
which is a Kronecker sequence. After n rows, every share is right to within a few rows, in every lane and from the first
batch on; independent draws would deviate by the square root of n. The choice has no state but n.

Grain's `IterDataset.mix` rounds weights to integers, the smallest to 100 (0.55 and 0.45 become 122 and 99 or 100),
draws the same source in all lanes at the same time, and cannot restore a state after the sources have changed.
"""

import bisect
import hashlib
import itertools
import math
from collections.abc import Iterator, Mapping
from typing import Any

from allam_jax.data.batch import Batch
from allam_jax.data.packing import PackedRows
from allam_jax.errors import UserError

# 2^64 / golden ratio, and the fractional part of sqrt(2) in units of 2^-64.
_GOLDEN = 0x9E3779B97F4A7C15
_SQRT2 = 0x6A09E667F3BCC909


def check_weights(weights: Mapping[str, float]) -> None:
    """Raises UserError unless there is a source, every weight is finite and not negative, and one is positive."""
    if not weights:
        raise UserError("data: no sources; expected at least one")
    for name, weight in weights.items():
        if not (math.isfinite(weight) and weight >= 0):
            raise UserError(f"data: the weight of source {name} is {weight}; expected a number of at least 0")
    if not any(weights.values()):
        raise UserError(f"data: the weights of all sources ({', '.join(weights)}) are 0; give one a positive weight")


def source_of_row(row: int, *, lane: int, seed: int, weights: Mapping[str, float]) -> str:
    """The name of the source of a lane's n-th row, by the formula above."""
    offset = int.from_bytes(hashlib.blake2b(f"{seed}:mixture".encode(), digest_size=8).digest())
    point = (row * _GOLDEN + lane * _SQRT2 + offset) % 2**64 / 2**64
    ends = list(itertools.accumulate(weights.values()))
    # Rounding may put the point at the very end, where the last source with a positive weight takes it.
    index = min(bisect.bisect_right(ends, point * ends[-1]), bisect.bisect_left(ends, ends[-1]))
    return list(weights)[index]


class MixedRows(Iterator[Batch]):
    """The rows of one lane, drawn from its sources by weight, with `source_ids` filled in.

    Attributes:
        weights: of the rows to come. They may be set to others where a new phase begins: any stretch of the sequence
            has the right shares, so the count of rows continues.
    """

    def __init__(self, sources: Mapping[str, PackedRows], *, weights: Mapping[str, float], lane: int, seed: int):
        self.weights = weights
        self._sources, self._lane, self._seed = sources, lane, seed
        self._row = 0
        self._source_ids = {name: index for index, name in enumerate(sources)}

    def __next__(self) -> Batch:
        name = source_of_row(self._row, lane=self._lane, seed=self._seed, weights=self.weights)
        row = next(self._sources[name])
        row["source_ids"][:] = self._source_ids[name]
        self._row += 1
        return row

    def get_state(self) -> dict[str, Any]:
        """Number of rows drawn, and the state of every source."""
        return {"row": self._row, "sources": {name: rows.get_state() for name, rows in self._sources.items()}}

    def set_state(self, state: dict[str, Any]) -> None:
        """Continues at a state of `get_state`. A source that the state lacks starts at its beginning."""
        self._row = state["row"]
        for name, rows in self._sources.items():
            rows.set_state(state["sources"].get(name, {"document": 0, "offset": 0}))
