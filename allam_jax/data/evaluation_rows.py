"""Held-out documents as fixed rows, for bits per byte. Every text token is predicted exactly once.

The score of a set of documents is -sum(log2 p(token)) / bytes = nats / (ln 2 * UTF-8 bytes of the texts). The first
token is predicted from BOS. EOS is not text and is not scored. Unlike training rows, these rows do not cut a document
that fits into a row. A longer document is scored in windows of `seq_len`, each without context from the window before.
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import grain
import numpy as np

from allam_jax.data.batch import DTYPES, Batch, Encoder, padding
from allam_jax.data.documents import DocumentSource
from allam_jax.data.packing import write_segment
from allam_jax.errors import UserError

_OPEN_ROWS = 32  # a piece goes into the first of the last 32 rows that has room for it


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationRows:
    """Rows of one set of held-out documents.

    Attributes:
        rows: arrays of [number of rows, seq_len], with the keys of a batch.
        documents: number of documents.
        bytes: UTF-8 bytes of their texts, the denominator of bits per byte.
        tokens: number of predicted tokens, the sum of all loss weights.
    """

    rows: Batch
    documents: int
    bytes: int
    tokens: int

    def batches(self, batch_size: int, *, process_index: int = 0, process_count: int = 1) -> Iterator[Batch]:
        """Yields this process's part of each batch of `batch_size` rows in all; padding rows fill up the last batch."""
        if batch_size % process_count:
            raise UserError(f"evaluation: batch_size {batch_size} cannot be divided by {process_count} processes")
        local = batch_size // process_count
        for start in range(process_index * local, process_index * local + len(self.rows["tokens"]), batch_size):
            mine = {key: array[start : start + local] for key, array in self.rows.items()}
            missing = local - len(mine["tokens"])
            filler = padding(missing, mine["tokens"].shape[1])
            yield {key: np.concatenate([mine[key], filler[key]]) for key in DTYPES} if missing else mine


def make_evaluation_rows(
    path: str | Path,
    *,
    tokenizer: Encoder,
    seq_len: int,
    split: str = "validation",
    max_bytes: int | None = None,
) -> EvaluationRows:
    """Tokenises a split into rows, or a fixed random sample of its documents that is the same for every tokenizer.

    The sample ends before the document that would exceed `max_bytes` of text, but has at least one. UserError if there
    is no such dataset or split, a shard is damaged, or there is no text.
    """
    source = DocumentSource(path, split=split)
    packer = _FirstFit(seq_len)
    documents = size = tokens = 0
    for text in grain.MapDataset.source(source).shuffle(seed=0) if len(source) else ():
        text_bytes = len(text.encode())
        if max_bytes is not None and documents and size + text_bytes > max_bytes:
            break
        ids = np.asarray(tokenizer.encode(text, bos=True), np.int32)
        for start in range(0, len(ids) - 1, seq_len):
            packer.add(ids[start : start + seq_len + 1])
        documents += 1
        size += text_bytes
        tokens += len(ids) - 1
    if not tokens:
        raise UserError(f"{path}: split {split!r} has no text to evaluate on")
    rows = {key: np.stack([row[key] for row in packer.rows]) for key in DTYPES}
    return EvaluationRows(rows=rows, documents=documents, bytes=size, tokens=tokens)


class _FirstFit:
    """Rows into which pieces of at most `seq_len` pairs are put whole."""

    def __init__(self, seq_len: int):
        self.rows: list[Batch] = []
        self._seq_len = seq_len
        self._filled: list[int] = []
        self._segments: list[int] = []

    def add(self, tokens: np.ndarray) -> None:
        """Writes the pairs of consecutive tokens."""
        pairs = len(tokens) - 1
        open_rows = range(max(0, len(self.rows) - _OPEN_ROWS), len(self.rows))
        index = next((row for row in open_rows if self._filled[row] + pairs <= self._seq_len), None)
        if index is None:
            index = len(self.rows)
            self.rows.append(padding(self._seq_len))
            self._filled.append(0)
            self._segments.append(0)
        self._segments[index] += 1
        write_segment(self.rows[index], tokens, start=self._filled[index], segment=self._segments[index])
        self._filled[index] += pairs
