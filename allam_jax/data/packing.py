"""Packs tokenised documents into rows of fixed length.

A document of tokens d_0 .. d_n (d_0 = BOS, d_n = EOS) is n pairs (input d_i, target d_i+1): every token but the first
is predicted once, nothing is predicted across documents, and EOS is never an input. The pairs of all documents are
laid one after another and cut into rows of `seq_len`: no padding, no pair lost. A document that meets the end of a row
goes on in the next row as a new segment, its targets unharmed because pairs are formed before the cut.

Grain's own ConcatThenSplit cuts documents of single tokens: forming the pairs after it would lose one target at every
cut, and its state must replay rows to be restored. Here the state is two integers.
"""

from typing import Any

import grain
import numpy as np

from allam_jax.data.batch import Batch, padding
from allam_jax.errors import UserError


def write_segment(row: Batch, tokens: np.ndarray, *, start: int, segment: int) -> None:
    """Writes the pairs of consecutive `tokens` (n + 1 of them make n pairs) into row[start : start + n]."""
    place = slice(start, start + len(tokens) - 1)
    row["tokens"][place] = tokens[:-1]
    row["targets"][place] = tokens[1:]
    row["segment_ids"][place] = segment
    row["positions"][place] = np.arange(len(tokens) - 1)
    row["loss_weights"][place] = 1


class PackedRows(grain.IterDataset):
    """Rows (dicts of [seq_len] arrays) out of a `grain.MapDataset` of token arrays, without end.

    The iterator's state is `{"document", "offset"}`: index of the document that the next row begins with, and how many
    of its pairs are used up. It does not depend on `seq_len`, so rows may change length when training resumes.
    """

    def __init__(self, parent: grain.MapDataset, *, seq_len: int, name: str, period: int):
        """`period` is the number of documents after which the parent repeats itself; `name` is for messages."""
        super().__init__(parent)
        self.documents = parent
        self.seq_len = seq_len
        self.name = name
        self.period = period

    def __iter__(self) -> grain.DatasetIterator:
        """Starts with the first document."""
        return _PackedRowsIterator(self)


class _PackedRowsIterator(grain.DatasetIterator):
    def __init__(self, dataset: PackedRows):
        super().__init__()
        self._dataset = dataset
        self._document = 0
        self._offset = 0
        self._tokens: np.ndarray | None = None  # Of the current document, once it is needed.

    def __next__(self) -> Batch:
        seq_len = self._dataset.seq_len
        row = padding(seq_len)
        filled = segment = idle = 0
        while filled < seq_len:
            if self._tokens is None:
                self._tokens = self._dataset.documents[self._document]
            pairs = min(len(self._tokens) - 1 - self._offset, seq_len - filled)
            if pairs > 0:
                segment += 1
                piece = self._tokens[self._offset : self._offset + pairs + 1]
                write_segment(row, piece, start=filled, segment=segment)
                filled += pairs
                self._offset += pairs
            idle = idle + 1 if pairs <= 0 else 0
            if idle > self._dataset.period:
                raise UserError(
                    f"source {self._dataset.name}: no document has any tokens; there is nothing to train on"
                )
            if self._offset >= len(self._tokens) - 1:
                self._document, self._offset, self._tokens = self._document + 1, 0, None
        return row

    def get_state(self) -> dict[str, Any]:
        return {"document": self._document, "offset": self._offset}

    def set_state(self, state: dict[str, Any]) -> None:
        self._document, self._offset, self._tokens = state["document"], state["offset"], None
