"""Text beside conversations: how much, what of it is learned, and that nothing else changes."""

import numpy as np
import pytest
from packed_chats import chats, messages
from small_chats import masker, sentencepiece_tokenizer

from allam_jax.alignment.packed_samples import PackedRows, items_of
from allam_jax.alignment.replayed_text import replayed
from allam_jax.alignment.sample_cache import conversations, open_samples, write_samples
from allam_jax.alignment.settings import ReplaySettings
from allam_jax.corpus.document import Document
from allam_jax.corpus.shards import write_dataset
from allam_jax.data.settings import SourceSettings
from allam_jax.errors import UserError
from allam_jax.files import write_json_lines

SEQ_LEN = 64
TEXTS = {
    "en": [f"The capital of Egypt is Cairo, and that of Oman is Muscat, {number}." * 4 for number in range(12)],
    "ar": [f"عاصمة مصر القاهرة {number}." for number in range(6)],
}


@pytest.fixture(scope="module")
def datasets(tmp_path_factory):
    root = tmp_path_factory.mktemp("texts")
    for name, texts in TEXTS.items():
        documents = [Document(text=text, id=str(n), source=name, language=name) for n, text in enumerate(texts)]
        write_dataset(documents, directory=root / name, name=name, validation_share=0.0, metadata={})
    return root


def settings(datasets, *, share, en=3.0, ar=1.0):
    sources = {name: SourceSettings(path=str(datasets / name), weight=w) for name, w in (("en", en), ("ar", ar))}
    return ReplaySettings(sources=sources, share=share)


def written(directory, datasets, *, share):
    records = [{"messages": list(messages(turns))} for turns in chats(24)]
    write_json_lines(directory / "chats.jsonl", records)
    tokenizer = sentencepiece_tokenizer()
    chosen = settings(datasets, share=share)
    write_samples(
        directory / "samples",
        paths={"chats": str(directory / "chats.jsonl")},
        make=conversations(masker(seq_len=256), learned="all"),
        identity={"share": share},
        vocab_size=tokenizer.vocab_size,
        held_out_share=0.3,
        max_bad_share=0.0,
        text=lambda beside: replayed(chosen, beside=beside, tokenizer=tokenizer, seq_len=SEQ_LEN, seed=5),
    )
    return open_samples(directory / "samples")


def test_text_has_its_share_of_the_tokens_and_is_learned_whole(tmp_path, datasets):
    samples = written(tmp_path, datasets, share=0.4)
    assert samples.sources == ("chats", "text_en", "text_ar")
    pairs = samples.lengths - 1
    trained = ~samples.held_out
    assert samples.held_out[samples.source == 0].any()
    assert trained[samples.source > 0].all()
    beside = pairs[trained & (samples.source == 0)].sum()
    text = {name: pairs[samples.source == number].sum() for number, name in ((1, "en"), (2, "ar"))}
    assert text["en"] + text["ar"] == pytest.approx(beside * 0.4 / 0.6, abs=1)
    assert text["en"] == pytest.approx(3 * text["ar"], abs=2)
    assert max(pairs[samples.source > 0]) <= SEQ_LEN
    # The pieces of a source are its documents, one after another, and nothing else.
    tokenizer = sentencepiece_tokenizer()
    for number, name in ((1, "en"), (2, "ar")):
        whole = {tuple(tokenizer.encode(text, bos=True, eos=True)) for text in TEXTS[name]}
        document: list[int] = []
        for place in np.flatnonzero(samples.source == number)[:-1].tolist():
            sample = samples[place]
            assert (sample.turns == 1).all()
            document = document[:-1] + sample.ids.tolist()
            if document[-1] == tokenizer.eos_id:
                assert tuple(document) in whole
                document = []
    rows = PackedRows(samples=samples, items=items_of(samples, held_out=False), seq_len=256)
    fitted = rows.fitted().rows(np.random.default_rng(0))
    batch = rows.batch([fitted[row] for row in range(len(fitted))])
    is_text = (batch["source_ids"] > 0) & (batch["segment_ids"] > 0)
    assert (batch["loss_weights"][is_text] == 1).all()
    assert is_text.sum() == text["en"] + text["ar"]


def test_without_a_share_or_text_nothing_is_replayed(tmp_path, datasets):
    none = replayed(settings(datasets, share=0.0), beside=1000, tokenizer=sentencepiece_tokenizer(), seq_len=9, seed=0)
    assert [list(samples) for samples in none.values()] == [[], []]
    only = replayed(
        settings(datasets, share=0.5, ar=0.0), beside=50, tokenizer=sentencepiece_tokenizer(), seq_len=9, seed=0
    )
    assert [sum(len(sample) - 1 for sample in samples) for samples in only.values()] == [50]
    for wrong, message in (
        ({"share": 0.5}, r"replay\.sources: name at least one with a weight above 0"),
        ({"sources": {"en": SourceSettings(path="x", epochs=1.0)}}, "set epochs = 0"),
    ):
        with pytest.raises(UserError, match=message):
            ReplaySettings(**wrong)
