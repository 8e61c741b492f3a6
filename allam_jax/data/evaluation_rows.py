"""Held-out documents as fixed rows, for bits per byte: every text token is predicted exactly once.

The score of a document set is -sum(log2 p(token)) / bytes = nats / (ln 2 * UTF-8 bytes of the texts). The first token
is predicted from BOS; EOS is not text and is not scored. Unlike training rows, these never cut a document that fits
into one: a document longer than `seq_len` is scored in windows of `seq_len`, each with no context but its own.
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

# A piece goes into the first of this many rows last opened that has room for it.
_OPEN_ROWS = 32


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationRows:
    """Rows of one held-out document set.

    Attributes:
      rows: Arrays of [number of rows, seq_len], keys as in a batch.
      documents: Number of documents.
      bytes: UTF-8 bytes of their texts: the denominator of bits per byte.
      words: Words (separated by white space) of their texts.
      tokens: Predicted tokens: the sum of all loss weights.
    """

    rows: Batch
    documents: int
    bytes: int
    words: int
    tokens: int

    def batches(self, batch_size: int, *, process_index: int = 0, process_count: int = 1) -> Iterator[Batch]:
        """This process's part of each batch of `batch_size` rows in all; the last is filled up with padding rows."""
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
    max_documents: int | None = None,
    max_bytes: int | None = None,
) -> EvaluationRows:
    """Tokenises a split (or a fixed random sample of its documents, the same for every tokenizer) into rows.

    Args:
      path: Dataset directory.
      tokenizer: Texts to ids.
      seq_len: Tokens per row.
      split: Which documents.
      max_documents: Take no more documents than this.
      max_bytes: Take documents up to the first that would exceed this many bytes of text, but at least one.

    Raises:
      UserError: No such dataset or split, a damaged shard, or no text in it.
    """
    source = DocumentSource(path, split=split)
    limit = min(len(source), max_documents if max_documents is not None else len(source))
    if limit < 1:
        raise UserError(f"{path}: no documents to evaluate on in split {split!r} (max_documents {max_documents})")
    packer = _FirstFit(seq_len)
    documents = size = words = tokens = 0
    for text in (text for text, _ in zip(grain.MapDataset.source(source).shuffle(seed=0), range(limit), strict=False)):
        text_bytes = len(text.encode())
        if max_bytes is not None and documents and size + text_bytes > max_bytes:
            break
        ids = np.asarray(tokenizer.encode(text, bos=True), np.int32)
        for start in range(0, len(ids) - 1, seq_len):
            packer.add(ids[start : start + seq_len + 1])
        documents, size, words, tokens = (
            documents + 1,
            size + text_bytes,
            words + len(text.split()),
            tokens + len(ids) - 1,
        )
    if not tokens:
        raise UserError(f"{path}: the documents of split {split!r} have no text to evaluate on")
    rows = {key: np.stack([row[key] for row in packer.rows]) for key in DTYPES}
    return EvaluationRows(rows=rows, documents=documents, bytes=size, words=words, tokens=tokens)


class _FirstFit:
    """Rows that pieces of at most `seq_len` pairs are put into whole."""

    def __init__(self, seq_len: int):
        self.rows: list[Batch] = []
        self._seq_len = seq_len
        self._filled: list[int] = []
        self._segments: list[int] = []

    def add(self, tokens: np.ndarray) -> None:
        """Writes the pairs of consecutive tokens (one more than pairs)."""
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
