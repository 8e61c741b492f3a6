"""A batch: the interface between the data and everything that computes on it.

A batch is a dict of arrays of one shape, [batch, seq_len]:

  tokens        int32    input token ids
  targets       int32    the id to predict at each position: the document's next token
  segment_ids   int32    0 = padding; the documents (or their pieces) in a row count from 1
  positions     int32    position in the segment, from 0
  loss_weights  float32  0 where nothing is predicted
  source_ids    int32    index of the source in the config's order
"""

from collections.abc import Iterable
from typing import Protocol

import numpy as np

Batch = dict[str, np.ndarray]

DTYPES: dict[str, np.dtype] = {
    "tokens": np.dtype(np.int32),
    "targets": np.dtype(np.int32),
    "segment_ids": np.dtype(np.int32),
    "positions": np.dtype(np.int32),
    "loss_weights": np.dtype(np.float32),
    "source_ids": np.dtype(np.int32),
}


class Encoder(Protocol):
    """What this room needs of a tokenizer."""

    @property
    def fingerprint(self) -> str:
        """Equal fingerprints mean equal ids for every text."""

    def encode(self, text: str, *, bos: bool = False, eos: bool = False) -> list[int]:
        """Ids of a text, with BOS before it and EOS after it where asked for."""
        ...

    @property
    def vocab_size(self) -> int:
        """All ids are smaller."""

    def encode_batch(self, texts: Iterable[str], *, bos: bool = False, eos: bool = False) -> list[list[int]]:
        """`encode` for many texts."""
        ...


def padding(*shape: int) -> Batch:
    """A batch (or a row, for shape [seq_len]) of padding only: all zeros."""
    return {key: np.zeros(shape, dtype) for key, dtype in DTYPES.items()}
