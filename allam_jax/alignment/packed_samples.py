"""Batches of packed samples: conversations for SFT, or pairs whose chosen and rejected side are segments of one row.

Every epoch shows each sample once, whole, in rows of best fit (`data/best_fit.py`) and in an order of its own. Rows
follow one another through the epochs, so that the position in the data is one number. Each sample is a segment with
positions from 0, and what is learned of it has a positive weight.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from allam_jax.alignment.reply_masks import Sample
from allam_jax.alignment.sample_cache import Samples
from allam_jax.data.batch import DTYPES, Batch, padding
from allam_jax.data.best_fit import BestFit, Rows
from allam_jax.data.packing import write_segment
from allam_jax.errors import UserError
from allam_jax.files import sha256_of_json

# Sample number -> a value for each of its pairs of tokens, float32 [n - 1].
Column = Callable[[int], np.ndarray]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PackedRows:
    """How samples become rows: the same for training, for the reference and for held-out losses.

    Attributes:
        samples: what is packed.
        items: numbers of the samples that stay together, [items, 1] for conversations and [items, 2] for pairs.
        seq_len: pairs of tokens of a row.
        packed: whether items share rows.
        by_sample: a sample's weights sum to 1, rather than to its number of learned tokens.
        columns: further arrays of a batch.
    """

    samples: Samples
    items: np.ndarray
    seq_len: int
    packed: bool = True
    by_sample: bool = False
    columns: Mapping[str, Column] = dataclasses.field(default_factory=dict)

    def fitted(self) -> BestFit:
        """The packing; UserError if there is nothing to pack, or an item is longer than a row."""
        lengths = (self.samples.lengths[self.items] - 1).sum(axis=1)
        if not len(lengths):
            raise UserError("conversations: no sample is left to train on; lower conversations.held_out_share")
        if lengths.max() > self.seq_len:
            raise UserError(
                f"conversations: {np.sum(lengths > self.seq_len):,} items are longer than data.seq_len = "
                f"{self.seq_len}; raise it"
            )
        return BestFit(lengths, capacity=self.seq_len, packed=self.packed)

    def row(self, items: np.ndarray) -> Batch:
        """The arrays [seq_len] of a row with these items."""
        row = padding(self.seq_len) | {name: np.zeros(self.seq_len, np.float32) for name in self.columns}
        start = 0
        for segment, number in enumerate(self.items[items].ravel().tolist(), start=1):
            sample = self.samples[number]
            write_segment(row, sample.ids, start=start, segment=segment)
            place = slice(start, start + len(sample) - 1)
            row["loss_weights"][place] = self._weights(sample)
            row["source_ids"][place] = self.samples.source[number]
            for name, column in self.columns.items():
                row[name][place] = column(number)
            start = place.stop
        return row

    def batch(self, rows: Sequence[np.ndarray]) -> Batch:
        """The arrays [rows, seq_len] of rows of items; a row without items is padding."""
        made = [self.row(items) for items in rows]
        return {name: np.stack([row[name] for row in made]) for name in (*DTYPES, *self.columns)}

    def _weights(self, sample: Sample) -> np.ndarray:
        learned = (sample.turns[1:] > 0).astype(np.float32)
        return learned / learned.sum() if self.by_sample else learned


def items_of(samples: Samples, *, held_out: bool | None = None, together: int = 1) -> np.ndarray:
    """Numbers of the samples for training, of those held out, or of all, [items, together]."""
    items = np.arange(len(samples)).reshape(-1, together)
    return items if held_out is None else items[samples.held_out[items[:, 0]] == held_out]


class PackedSamples(Iterator[Batch]):
    """A BatchSource of packed samples; endless."""

    def __init__(self, rows: PackedRows, *, batch_size: int, seed: int, local_rows: range):
        """`local_rows` are this process's rows of a batch of `batch_size`."""
        self._rows, self._batch_size, self._seed, self._local = rows, batch_size, seed, local_rows
        self._fit = rows.fitted()
        self._position = 0  # rows handed out, of all processes
        self._epoch: tuple[int, Rows] | None = None
        self.source_names = list(rows.samples.sources)
        self.mixture = sha256_of_json([rows.samples.identity, rows.seq_len, rows.packed, rows.by_sample])

    @property
    def rows_of_an_epoch(self) -> int:
        """Rows in which every sample is once."""
        return self._fit.count

    @property
    def most_items(self) -> int:
        """Of a row."""
        return self._fit.most_items

    def steps_of(self, epochs: float) -> int:
        """Batches that hold so many epochs; the last one goes on into the next."""
        return max(1, math.ceil(epochs * self.rows_of_an_epoch / self._batch_size))

    def __next__(self) -> Batch:
        found = self._rows.batch([self._items(self._position + row) for row in self._local])
        self._position += self._batch_size
        return found

    def get_state(self) -> dict[str, Any]:
        """See BatchSource."""
        return {"mixture": self.mixture, "seed": self._seed, "position": self._position}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """See BatchSource."""
        for key, own in (("mixture", self.mixture), ("seed", self._seed)):
            if state.get(key) != own:
                what = "conversations, template or packing" if key == "mixture" else "seed"
                raise UserError(f"data state: of another {what}; resume with the same, or use another --workdir")
        self._position = int(state["position"])

    def set_step(self, step: int) -> None:
        """See BatchSource: nothing depends on it."""

    def mixture_at(self, step: int) -> dict[str, float]:
        """See BatchSource: there are no phases."""
        return {}

    def epochs(self) -> dict[str, float]:
        """See BatchSource."""
        return dict.fromkeys(self.source_names, self._position / self.rows_of_an_epoch)

    def _items(self, position: int) -> np.ndarray:
        number, row = divmod(position, self.rows_of_an_epoch)
        if self._epoch is None or self._epoch[0] != number:
            self._epoch = number, self._fit.rows(np.random.default_rng([self._seed, number]))
        return self._epoch[1][row]
