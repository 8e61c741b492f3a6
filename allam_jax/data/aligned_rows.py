"""The same texts as ids of two tokenizers, of which the second extends the first, with the places where both meet.

R rows, T tokens, P pairs of places.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from allam_jax.tokenizer.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class AlignedRows:
    """Passages, each a row of its own from its first token on.

    A pair of places is where the same bytes have been read by both. Only pairs from a row's first new token on are
    kept: before it both rows are equal.

    Attributes:
        old_RT, new_RT: ids, padded with 0.
        old_places_RT, new_places_RT: pairs of places; the first `pairs_R` of a row count.
        pairs_R: how many.
        lengths_R: tokens of `new_RT`.
    """

    old_RT: np.ndarray
    new_RT: np.ndarray
    old_places_RT: np.ndarray
    new_places_RT: np.ndarray
    pairs_R: np.ndarray
    lengths_R: np.ndarray

    def __len__(self) -> int:
        return len(self.pairs_R)

    def rows(self, index: np.ndarray) -> dict[str, np.ndarray]:
        """The arrays of some rows, by name."""
        return {field.name: getattr(self, field.name)[index] for field in dataclasses.fields(self)}


def aligned_rows(old: Tokenizer, new: Tokenizer, texts: Iterable[str], *, seq_len: int, most: int) -> AlignedRows:
    """Up to `most` rows of passages of `texts` that fit into `seq_len` tokens of either, and have a new token."""
    old_sizes, new_sizes = _sizes(old), _sizes(new)
    is_old = np.array([old.piece_to_id(new.id_to_piece(index)) == index for index in range(new.vocab_size)])
    found: list[tuple[list[int], list[int], np.ndarray, np.ndarray]] = []
    for passage in (passage for text in texts for passage in _passages(old, text, seq_len=seq_len)):
        if len(found) == most:
            break
        old_ids, new_ids = old.encode(passage), new.encode(passage)
        is_new = ~is_old[new_ids]
        if not is_new.any() or len(new_ids) > seq_len - 1:
            continue
        old_ends, new_ends = np.cumsum(old_sizes[old_ids]), np.cumsum(new_sizes[new_ids])
        _, old_places, new_places = np.intersect1d(old_ends, new_ends, return_indices=True)
        after = new_places >= is_new.argmax()
        begin = 0
        if old.bos_id is not None and new.bos_id is not None:
            old_ids, new_ids, begin = [old.bos_id, *old_ids], [new.bos_id, *new_ids], 1
        found.append((old_ids, new_ids, old_places[after] + begin, new_places[after] + begin))
    return AlignedRows(
        old_RT=_padded([row[0] for row in found], seq_len),
        new_RT=_padded([row[1] for row in found], seq_len),
        old_places_RT=_padded([row[2] for row in found], seq_len),
        new_places_RT=_padded([row[3] for row in found], seq_len),
        pairs_R=np.array([len(row[2]) for row in found], np.int32),
        lengths_R=np.array([len(row[1]) for row in found], np.int32),
    )


def _padded(rows: Sequence[Any], length: int) -> np.ndarray:
    padded = np.zeros((len(rows), length), np.int32)
    for array, row in zip(padded, rows, strict=True):
        array[: len(row)] = row
    return padded


def _sizes(tokenizer: Tokenizer) -> np.ndarray:
    """Bytes of each token; those of ids that no text has do not matter."""
    ids = range(tokenizer.vocab_size)
    return np.array([0 if tokenizer.is_special(index) else len(tokenizer.token_bytes(index)) for index in ids])


def _passages(tokenizer: Tokenizer, text: str, *, seq_len: int) -> Iterator[str]:
    """The lines of a text, cut in halves between words until they fit; what does not fit even so is left out."""
    pending: list[Sequence[str]] = [line.split() for line in reversed(text.splitlines())]
    while pending:
        words = pending.pop()
        passage = " ".join(words)
        if words and len(tokenizer.encode(passage)) < seq_len:
            yield passage
        elif len(words) > 1:
            middle = len(words) // 2
            pending += [words[middle:], words[:middle]]
