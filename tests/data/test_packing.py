"""Packing against a brute-force version that works on one long list of pairs."""

import grain
import numpy as np
import pytest

from allam_jax.data.batch import DTYPES
from allam_jax.data.packing import PackedRows
from allam_jax.errors import UserError


def documents(lengths):
    """Token arrays of the given lengths; every token is different, so that nothing can be confused."""
    ends = np.cumsum(lengths)
    return [np.arange(end - length, end, dtype=np.int32) + 1 for length, end in zip(lengths, ends, strict=True)]


def packed(docs, seq_len):
    source = grain.MapDataset.source(docs).repeat()
    return PackedRows(source, seq_len=seq_len, name="s", period=len(docs))


def brute_force_rows(docs, *, seq_len, count):
    """All pairs of the endlessly repeated documents in one list, cut into rows."""
    pairs = []
    instance = 0
    while len(pairs) < count * seq_len:
        document = docs[instance % len(docs)]
        pairs += [(document[i], document[i + 1], instance) for i in range(len(document) - 1)]
        instance += 1
    rows = []
    for start in range(0, count * seq_len, seq_len):
        segment, position, row = 0, 0, []
        for index in range(start, start + seq_len):
            if index == start or pairs[index][2] != pairs[index - 1][2]:
                segment, position = segment + 1, 0
            row.append((pairs[index][0], pairs[index][1], segment, position))
            position += 1
        rows.append(np.array(row, np.int32).T)
    return rows


CASES = {
    "mixed": [5, 2, 40, 3, 9, 17, 2, 8, 9],
    "document of exactly a row": [9, 9, 17, 9],
    "much longer than a row": [100, 3],
    "one of two tokens": [2],
    "empty and one-token documents are passed over": [0, 5, 1, 1, 7, 0],
}


@pytest.mark.parametrize("lengths", CASES.values(), ids=CASES.keys())
@pytest.mark.parametrize("seq_len", [1, 2, 8, 33])
def test_rows_equal_brute_force(lengths, seq_len):
    docs = documents(lengths)
    count = 40
    expected = brute_force_rows(docs, seq_len=seq_len, count=count)
    for row, (tokens, targets, segments, positions) in zip(packed(docs, seq_len), expected, strict=False):
        np.testing.assert_array_equal(row["tokens"], tokens)
        np.testing.assert_array_equal(row["targets"], targets)
        np.testing.assert_array_equal(row["segment_ids"], segments)
        np.testing.assert_array_equal(row["positions"], positions)
        np.testing.assert_array_equal(row["loss_weights"], 1)
        assert {key: array.dtype for key, array in row.items()} == DTYPES


def test_every_token_but_the_first_of_a_document_is_a_target_once_per_epoch():
    docs = documents([5, 2, 40, 3, 9, 17, 2, 8, 10])
    pairs = sum(len(document) - 1 for document in docs)
    assert pairs % 29 == 0
    rows = iter(packed(docs, 29))
    for _ in range(3):
        targets = np.concatenate([next(rows)["targets"] for _ in range(pairs // 29)])
        assert sorted(targets) == sorted(np.concatenate([document[1:] for document in docs]))


@pytest.mark.parametrize("seq_len", [3, 8])
def test_state_at_every_row_gives_the_same_rest(seq_len):
    docs = documents([5, 2, 40, 0, 3, 9, 17, 2, 1, 8, 9])
    iterator = packed(docs, seq_len)
    states, rows = [], []
    for _ in range(30):
        states.append(iterator.get_state())
        rows.append(next(iterator))
    for index, state in enumerate(states):
        fresh = packed(docs, seq_len)
        fresh.set_state(state)
        assert fresh.get_state() == state
        for row in rows[index:]:
            for key, array in next(fresh).items():
                np.testing.assert_array_equal(array, row[key])


def test_rows_may_change_length_at_a_saved_state():
    docs = documents([5, 2, 40, 3])
    short = iter(packed(docs, 7))
    before = [next(short)["targets"] for _ in range(3)]
    long = iter(packed(docs, 20))
    long.set_state(short.get_state())
    whole = brute_force_rows(docs, seq_len=41, count=1)[0][1]
    np.testing.assert_array_equal(np.concatenate([*before, next(long)["targets"]]), whole)


def test_documents_without_tokens_end_in_an_error_not_in_a_hang():
    with pytest.raises(UserError, match="source s: no document has any tokens"):
        next(iter(packed(documents([1, 0, 1]), 8)))
