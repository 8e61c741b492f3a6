"""A batch: the interface between the data and everything that computes on it.

A batch is a dict of arrays of one shape, [batch, seq_len]:

  tokens        int32    input token ids
  targets       int32    the id to predict at each position: the document's next token
  segment_ids   int32    0 = padding; the documents (or their pieces) in a row count from 1
  positions     int32    position in the segment, from 0
  loss_weights  float32  0 where nothing is predicted
  source_ids    int32    index of the source in the config's order
"""

from collections.abc import Iterable, Mapping
from typing import Any, Protocol

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


class BatchSource(Protocol):
    """What gives a run its batches: this process's rows of each, resumable between any two.

    Attributes:
        source_names: the sources in the order in which `source_ids` count them.
        mixture: hash of what is read, and in which shares.
    """

    source_names: list[str]
    mixture: str

    def __next__(self) -> Batch:
        """The next batch's rows."""
        ...

    def get_state(self) -> dict[str, Any]:
        """JSON-able; the position between the last batch handed out and the next."""
        ...

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Continues at a state; UserError if it is of other data."""
        ...

    def set_step(self, step: int) -> None:
        """Makes the next batch that of update `step + 1`, where that decides what is drawn; the position stays."""
        ...

    def mixture_at(self, step: int) -> dict[str, float]:
        """Metrics for the batch of update `step + 1`."""
        ...

    def epochs(self) -> dict[str, float]:
        """How often each source has been used."""
        ...


def padding(*shape: int) -> Batch:
    """A batch (or a row, for shape [seq_len]) of padding only: all zeros."""
    return {key: np.zeros(shape, dtype) for key, dtype in DTYPES.items()}
