import numpy as np
import pytest
import tokenizers
from tokenizer_helpers import Corpus, Merge, reference, sentencepiece_model

from allam_jax.errors import UserError
from allam_jax.tokenizer.json_model import JsonModel
from allam_jax.tokenizer.provenance import expansion_plan
from allam_jax.tokenizer.tokenizer import Tokenizer, with_control_tokens


def test_every_row_comes_from_one_place(languages: Merge):
    base, merged = languages.base, languages.merged
    plan = expansion_plan(base, merged)
    assert (plan.base_size, plan.merged_size) == (base.vocab_size, merged.vocab_size)
    assert np.array_equal(plan.kept, np.stack([np.arange(base.vocab_size)] * 2, axis=1))
    assert list(plan.new) == list(range(base.vocab_size, merged.vocab_size - 2))
    assert list(plan.special) == [merged.vocab_size - 2, merged.vocab_size - 1]
    assert all(plan.new.values())


def test_pieces_are_spelled_as_the_base_would_read_them(languages: Merge):
    base, merged = languages.base, languages.merged
    plan = expansion_plan(base, merged)
    truth = reference(base)
    prefix = truth.encode("\t")
    for index, ids in (plan.new | plan.special).items():
        piece = merged.id_to_piece(index)
        if piece.startswith("▁"):  # a word: what the base makes of it at the start of a text
            assert ids == truth.encode(piece[1:])
        else:  # inside a word: what the base makes of it behind something that it cannot join
            assert prefix + ids == truth.encode("\t" + piece)


def test_rows_are_found_by_piece_not_by_place(languages: Merge):
    """A merged vocabulary in another order: special tokens in the middle, rows shuffled."""
    proto = type(languages.merged.model.proto)()
    proto.CopyFrom(languages.merged.model.proto)
    order = np.random.default_rng(0).permutation(len(proto.pieces))
    pieces = [languages.merged.model.proto.pieces[i] for i in order]
    del proto.pieces[:]
    proto.pieces.extend(pieces)
    shuffled = Tokenizer.from_sentencepiece(proto.SerializeToString())
    plan = expansion_plan(languages.base, shuffled)
    straight = expansion_plan(languages.base, languages.merged)
    assert all(shuffled.id_to_piece(m) == languages.base.id_to_piece(b) for m, b in plan.kept)
    assert len(plan.kept) == len(straight.kept)
    assert {int(order[i]): ids for i, ids in plan.new.items()} == straight.new
    assert {int(order[i]): ids for i, ids in plan.special.items()} == straight.special


def test_spelling_in_bytes_is_marked():
    base = sentencepiece_model({"▁": -5.0, "a": -6.0, "ا": -7.0})
    merged = sentencepiece_model({"▁": -5.0, "a": -6.0, "ا": -7.0, "ي": -8.0, "يا": -1.0, "ا▁": -2.0})
    plan = expansion_plan(base, merged)
    assert plan.new == {
        262: [base.piece_to_id("<0xD9>"), base.piece_to_id("<0x8A>")],
        263: [base.piece_to_id("<0xD9>"), base.piece_to_id("<0x8A>"), base.piece_to_id("ا")],
        264: [base.piece_to_id("ا"), base.piece_to_id("▁")],
    }


def test_a_byte_or_control_piece_is_not_its_text():
    base = sentencepiece_model({"▁": -5.0, "<": -6.0, "x": -7.0, ">": -8.0, "<x>": -1.0, "<x": -2.0})
    merged_model = sentencepiece_model({"▁": -5.0, "<": -6.0, "x": -7.0, ">": -8.0})
    merged = with_control_tokens(merged_model, ["<x>"])
    plan = expansion_plan(base, merged)
    assert plan.special == {263: [base.piece_to_id("<x>")]}
    assert 263 not in plan.kept[:, 0]


def test_byte_level_bpe(corpus: Corpus):
    def train(lines: list[str], size: int) -> Tokenizer:
        tokenizer = tokenizers.ByteLevelBPETokenizer()
        tokenizer.train_from_iterator(lines, vocab_size=size, special_tokens=["<|bos|>"], show_progress=False)
        return Tokenizer(JsonModel(tokenizer.to_str(), settings={}, source=f"byte-level {size}"))

    base, merged = train(corpus.train["en"][:500], 600), train(corpus.train["ar"][:500], 900)
    plan = expansion_plan(base, merged)
    assert all(merged.id_to_piece(m) == base.id_to_piece(b) for m, b in plan.kept)
    assert len(plan.kept) + len(plan.new) + len(plan.special) == merged.vocab_size
    assert len(plan.kept) >= 257
    word = merged.piece_to_id("ĠÙħÙĨ")  # " من"
    assert plan.new[word] == base.encode(" من")
    assert all("".join(map(base.id_to_piece, ids)) == merged.id_to_piece(index) for index, ids in plan.new.items())
    with pytest.raises(UserError, match="its type differs"):
        expansion_plan(base, sentencepiece_model({"a": -1.0}))
