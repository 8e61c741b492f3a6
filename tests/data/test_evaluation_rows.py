import numpy as np
import pytest
import tensorflow_datasets as tfds
from small_corpus import BOS, EOS, TEXTS

from allam_jax.data.evaluation_rows import make_evaluation_rows
from allam_jax.errors import UserError


def segments(batches):
    """(tokens, targets) of every segment of every row."""
    for batch in batches:
        for row in range(len(batch["tokens"])):
            ids = batch["segment_ids"][row]
            for segment in range(1, ids.max() + 1):
                place = np.flatnonzero(ids == segment)
                assert (np.diff(place) == 1).all()
                np.testing.assert_array_equal(batch["positions"][row, place], np.arange(len(place)))
                np.testing.assert_array_equal(batch["loss_weights"][row, place], 1)
                yield batch["tokens"][row, place], batch["targets"][row, place]


@pytest.mark.parametrize("seq_len", [16, 128, 2000])
def test_every_text_byte_is_scored_exactly_once(datasets, tokenizer, seq_len):
    rows = make_evaluation_rows(datasets / "en", split="train", tokenizer=tokenizer, seq_len=seq_len)
    texts = [text.encode() for text in TEXTS["en"]]
    assert rows.documents == len(texts)
    assert rows.bytes == rows.tokens == sum(map(len, texts))  # one token per byte
    windows = [text[start : start + seq_len] for text in texts for start in range(0, len(text), seq_len)]
    found = []
    starts_with_bos = 0
    for tokens, targets in segments(rows.batches(4)):
        np.testing.assert_array_equal(tokens[1:], targets[:-1])
        assert EOS not in targets
        assert EOS not in tokens
        starts_with_bos += tokens[0] == BOS
        found.append(bytes(targets.tolist()))
    assert sorted(found) == sorted(windows)  # so documents that fit are whole
    assert starts_with_bos == len(texts)
    assert rows.rows["loss_weights"].sum() == rows.tokens


def test_arabic_counts_utf8_bytes(datasets, tokenizer):
    rows = make_evaluation_rows(datasets / "ar", split="train", tokenizer=tokenizer, seq_len=64)
    assert rows.bytes == sum(len(text.encode()) for text in TEXTS["ar"]) > sum(map(len, TEXTS["ar"]))


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_batches_are_full_and_the_processes_share_them(datasets, tokenizer, processes):
    rows = make_evaluation_rows(datasets / "en", split="train", tokenizer=tokenizer, seq_len=100)
    count = len(rows.rows["tokens"])
    assert count % 8
    parts = [list(rows.batches(8, process_index=p, process_count=processes)) for p in range(processes)]
    assert {len(part) for part in parts} == {-(-count // 8)}
    for key in rows.rows:
        whole = np.concatenate([part[key] for step in zip(*parts, strict=True) for part in step])
        assert whole.shape == (-(-count // 8) * 8, 100)
        np.testing.assert_array_equal(whole[:count], rows.rows[key])
        assert not whole[count:].any()
        assert whole.dtype == rows.rows[key].dtype


def test_rows_are_well_filled(datasets, tokenizer):
    rows = make_evaluation_rows(datasets / "en", split="train", tokenizer=tokenizer, seq_len=256)
    assert rows.tokens / rows.rows["tokens"].size > 0.9


def test_limits_take_a_fixed_sample(datasets, tokenizer):
    whole = make_evaluation_rows(datasets / "en", split="train", tokenizer=tokenizer, seq_len=64)
    by_bytes = make_evaluation_rows(datasets / "en", split="train", tokenizer=tokenizer, seq_len=64, max_bytes=1000)
    again = make_evaluation_rows(datasets / "en", split="train", tokenizer=tokenizer, seq_len=64, max_bytes=1000)
    for key in by_bytes.rows:
        np.testing.assert_array_equal(by_bytes.rows[key], again.rows[key])
    assert 0 < by_bytes.bytes <= 1000 < whole.bytes
    one = make_evaluation_rows(datasets / "en", split="train", tokenizer=tokenizer, seq_len=64, max_bytes=1)
    assert one.documents == 1
    ids = {int(text[1 : text.index(":")]) for text in TEXTS["en"]}
    sample = {int(bytes(targets.tolist()).split(b":")[0][1:]) for tokens, targets in segments([by_bytes.rows])
              if tokens[0] == BOS}  # fmt: skip
    assert sample < ids
    assert sample != set(range(len(sample)))  # not the first of the file


def test_the_default_split_is_validation(datasets, tokenizer):
    rows = make_evaluation_rows(datasets / "split", tokenizer=tokenizer, seq_len=64)
    assert rows.documents == tfds.builder_from_directory(datasets / "split").info.splits["validation"].num_examples
    with pytest.raises(UserError, match="no split 'validation'"):
        make_evaluation_rows(datasets / "en", tokenizer=tokenizer, seq_len=64)
    with pytest.raises(UserError, match="batch_size 6 cannot be divided by 4 processes"):
        next(rows.batches(6, process_count=4))
