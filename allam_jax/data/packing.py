"""Packs tokenised documents into rows of fixed length.

A document of tokens d_0 .. d_n (d_0 = BOS, d_n = EOS) gives n pairs (input d_i, target d_i+1). So every token but the
first is predicted once, nothing is predicted across documents, and EOS is never an input. The pairs of all documents
are concatenated and cut into rows of `seq_len`, without padding and without losing a pair. A document that reaches the
end of a row continues in the next row as a new segment. The cut changes no target, because pairs are formed before it.

Grain's own ConcatThenSplit cuts documents of single tokens. Pairs formed after it would lose a target at every cut, and
restoring its state replays rows. The state here is two integers.
"""

from collections.abc import Iterator
from typing import Any

import grain
import numpy as np

from allam_jax.data.batch import Batch, padding
from allam_jax.errors import UserError


def write_segment(row: Batch, tokens: np.ndarray, *, start: int, segment: int) -> None:
    """Writes the n pairs of n + 1 consecutive `tokens` into row[start : start + n]."""
    place = slice(start, start + len(tokens) - 1)
    row["tokens"][place] = tokens[:-1]
    row["targets"][place] = tokens[1:]
    row["segment_ids"][place] = segment
    row["positions"][place] = np.arange(len(tokens) - 1)
    row["loss_weights"][place] = 1


class PackedRows(Iterator[Batch]):
    """Endless rows (dicts of [seq_len] arrays) from a dataset of token arrays."""

    def __init__(self, documents: grain.MapDataset, *, seq_len: int, name: str, period: int):
        """`documents` repeats itself after `period` elements; `name` is the source's name in error messages."""
        self._documents, self._seq_len, self._name, self._period = documents, seq_len, name, period
        self._document = 0
        self._offset = 0
        self._tokens: np.ndarray | None = None  # of the current document, once they are needed

    def __next__(self) -> Batch:
        row = padding(self._seq_len)
        filled = segment = idle = 0
        while filled < self._seq_len:
            if self._tokens is None:
                self._tokens = self._documents[self._document]
            pairs = min(len(self._tokens) - 1 - self._offset, self._seq_len - filled)
            if pairs > 0:
                segment += 1
                piece = self._tokens[self._offset : self._offset + pairs + 1]
                write_segment(row, piece, start=filled, segment=segment)
                filled += pairs
                self._offset += pairs
            idle = idle + 1 if pairs <= 0 else 0
            if idle > self._period:
                raise UserError(f"source {self._name}: no document has any tokens, so there is nothing to train on")
            if self._offset >= len(self._tokens) - 1:
                self._document, self._offset, self._tokens = self._document + 1, 0, None
        return row

    def get_state(self) -> dict[str, Any]:
        """The document that the next row begins with, and how many of its pairs are used; independent of `seq_len`."""
        return {"document": self._document, "offset": self._offset}

    def set_state(self, state: dict[str, Any]) -> None:
        """Continues at a state of `get_state`, also one of rows of another length."""
        self._document, self._offset, self._tokens = state["document"], state["offset"], None
