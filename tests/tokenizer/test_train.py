import io
import itertools
import os
import unicodedata

import numpy as np
import pytest
import sentencepiece
from tokenizer_helpers import Corpus, Merge

from allam_jax.errors import UserError
from allam_jax.tokenizer.piece_merge import merge_vocabularies
from allam_jax.tokenizer.scripts import ARABIC_LETTERS, script_pattern
from allam_jax.tokenizer.sentencepiece_model import Piece
from allam_jax.tokenizer.sentencepiece_training import train_sentencepiece
from allam_jax.tokenizer.tokenizer import Tokenizer, with_control_tokens

TEXT = ["the quick brown fox jumps over the lazy dog 1234"] * 5


def test_the_same_bytes_with_any_number_of_threads(corpus: Corpus, monkeypatch):
    lines = corpus.train["ar"][:3000]
    models = []
    for cores in (1, 2, 5):
        monkeypatch.setattr(os, "cpu_count", lambda cores=cores: cores)
        models.append(train_sentencepiece(lines, vocab_size=3000).model.serialized())
    assert models[0] == models[1] == models[2]


def test_the_flags_of_llama(corpus: Corpus, mistral: Tokenizer):
    tokenizer = train_sentencepiece(corpus.train["code"][:5000], vocab_size=1500, control_tokens=["<|x|>"])
    assert tokenizer.vocab_size == 1500
    assert tokenizer.special_tokens == {"<unk>": 0, "<s>": 1, "</s>": 2, "<|x|>": 3}
    ours, llama = tokenizer.model.proto, mistral.model.proto
    for flag in ("name", "precompiled_charsmap", "add_dummy_prefix", "remove_extra_whitespaces", "escape_whitespaces"):
        assert getattr(ours.normalizer_spec, flag) == getattr(llama.normalizer_spec, flag)
    for flag in ("byte_fallback", "split_digits", "allow_whitespace_only_pieces", "split_by_unicode_script"):
        assert getattr(ours.trainer_spec, flag) == getattr(llama.trainer_spec, flag) is True
    assert not [piece for piece in tokenizer.model.pieces[260:] if len(piece) > 1 and any(c.isdigit() for c in piece)]
    assert "▁▁▁▁" in tokenizer.model.pieces  # indentation
    assert tokenizer.decode(tokenizer.encode("  ﬁ ①\t😀 ")) == "  ﬁ ①\t😀 "  # nothing is normalised


def test_required_characters_are_pieces():
    tokenizer = train_sentencepiece(TEXT, vocab_size=400, required_characters=ARABIC_LETTERS)
    assert all(tokenizer.piece_to_id(letter) is not None for letter in ARABIC_LETTERS)
    assert len(tokenizer.encode("كتاب")) == 5


def test_like_copies_the_normaliser_and_flags():
    arguments = {"vocab_size": 290, "character_coverage": 1.0}
    base = train_sentencepiece(TEXT, **arguments)
    base.model.proto.normalizer_spec.add_dummy_prefix = False
    base.model.proto.trainer_spec.split_digits = False
    base.model.proto.trainer_spec.unk_piece = "[UNK]"
    like = train_sentencepiece(TEXT, like=base, **arguments)
    assert like.model.proto.normalizer_spec == base.model.proto.normalizer_spec
    assert like.model.proto.trainer_spec.split_digits is False
    assert like.special_tokens == {"[UNK]": 0, "<s>": 1, "</s>": 2}
    assert like.encode("the")[0] != like.piece_to_id("▁the")


def test_like_copies_a_character_map():
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT), model_writer=model, model_type="bpe", vocab_size=290, byte_fallback=True,
        normalization_rule_name="nfkc_cf", minloglevel=2,
    )  # fmt: skip
    base = Tokenizer.from_sentencepiece(model.getvalue())
    like = train_sentencepiece(TEXT, vocab_size=290, like=base)
    ours, theirs = like.model.proto.normalizer_spec, base.model.proto.normalizer_spec
    assert ours.precompiled_charsmap == theirs.precompiled_charsmap
    assert ours.remove_extra_whitespaces == theirs.remove_extra_whitespaces
    assert like.encode("THE ﬁ") == like.encode("the fi")


def test_pieces_of_a_script_hold_nothing_else(corpus: Corpus):
    arabic = script_pattern("arabic")
    mixed = ["(كتاب)، «كتاب»؟ قال:«نعم»،  ثم   قال-، abc،def"] * 20 + corpus.train["ar"][:3000]
    tokenizer = train_sentencepiece(mixed, vocab_size=3000, script="arabic")
    pieces = [piece for piece in tokenizer.model.pieces if arabic.search(piece)]
    assert all(arabic.fullmatch(c) for piece in pieces for c in piece.removeprefix("▁"))
    assert len(pieces) > 2000
    assert not [piece for piece in tokenizer.model.pieces if len(piece) > 1 and not piece.strip("▁")]
    freely = train_sentencepiece(mixed, vocab_size=3000)
    assert [p for p in freely.model.pieces if arabic.search(p) and not all(map(arabic.search, p.removeprefix("▁")))]


def test_signs_of_the_base_follow_the_pieces_of_the_script(languages: Merge, corpus: Corpus):
    base, arabic = languages.base.model.proto, languages.arabic.model.proto
    is_arabic = script_pattern("arabic").search
    size = 4096 if languages.base.vocab_size == 4096 else 8000
    own, signs = arabic.pieces[:size], arabic.pieces[size:]
    assert all(is_arabic(p.piece) for p in own[259:] if p.piece != "▁")
    assert arabic.trainer_spec.vocab_size == len(arabic.pieces)
    # Every sign of the base is there, and no letter but the script's.
    wanted = {
        p.piece: p.score
        for p in base.pieces
        if p.type == 1
        and not any(unicodedata.category(c)[0] == "L" and not is_arabic(c) for c in p.piece)
        and (len(p.piece) == 1 or not is_arabic(p.piece))
    }
    assert set(wanted) <= {p.piece for p in arabic.pieces}
    assert {p.piece for p in signs} <= set(wanted)
    assert len(signs) > 150
    # In the base's order, ties included, below everything trained, and apart in float32.
    assert max(p.score for p in signs) < min(p.score for p in own)
    pairs = [(np.float32(p.score), wanted[p.piece]) for p in signs]
    for (ours, theirs), (next_ours, next_theirs) in itertools.pairwise(pairs):
        assert (ours == next_ours) == (theirs == next_theirs)
        assert ours >= next_ours
        assert theirs >= next_theirs


def test_a_script_is_learned_from_its_own_runs():
    text = ["  كتاب-كتاب  (كتاب) abكتابcd كتاب "] * 10 + ["  only English here"] * 5
    tokenizer = train_sentencepiece(text, vocab_size=268, script="arabic", character_coverage=1.0)
    assert {"▁كتاب", "كتاب"} <= set(tokenizer.model.pieces)
    assert set("".join(tokenizer.model.pieces[259:])) == set("▁كتاب")
    assert not any("▁▁" in piece for piece in tokenizer.model.pieces)


def test_what_a_script_cannot_use_is_refused(trained_base: Tokenizer):
    with pytest.raises(UserError, match="required_characters 'x!' are not of script 'arabic'"):
        train_sentencepiece(["كتاب"], vocab_size=300, like=trained_base, script="arabic", required_characters="xب!")
    with pytest.raises(UserError, match="no line of the texts has characters of script 'arabic'"):
        train_sentencepiece(TEXT, vocab_size=300, script="arabic")


@pytest.mark.parametrize(("tokens", "message"), [(["<|x|>"] * 2, "is given twice"), ([""], "is empty")])
def test_bad_control_tokens_are_named(tokens: list[str], message: str):
    base = train_sentencepiece(TEXT, vocab_size=290)
    with pytest.raises(UserError, match=message):
        train_sentencepiece(TEXT, vocab_size=290, control_tokens=tokens)
    with pytest.raises(UserError, match=message):
        with_control_tokens(base, tokens)


def test_joiners_of_the_script_become_pieces():
    """Persian spells with U+200C, so it may be in a piece, may be asked for, and cuts no word."""
    base = train_sentencepiece(TEXT, vocab_size=290)
    persian = ["من می\u200cخواهم کتاب\u200cهای تازه\u200cای بخوانم"] * 50
    target = train_sentencepiece(
        persian, vocab_size=310, like=base, script="arabic", required_characters="\u200c", character_coverage=1.0
    )
    merged = merge_vocabularies(base, target)
    pieces = [merged.id_to_piece(index) for index in merged.encode("می\u200cخواهم")]
    assert pieces == ["▁می\u200cخواهم"]
    assert merged.piece_to_id("\u200c") is not None


def test_a_base_with_equal_scores_is_refused_before_the_training():
    base = train_sentencepiece(TEXT, vocab_size=290)
    for piece in ("学习", "中文"):
        base.model.proto.pieces.add(piece=piece, score=0.0, type=Piece.NORMAL)
    base = Tokenizer.from_sentencepiece(base.model.serialized(), source="merged elsewhere")
    with pytest.raises(UserError, match="such as '学习', '中文' have the same score 0,.* start from the first"):
        train_sentencepiece((1 / 0 for _ in "x"), vocab_size=300, like=base, script="arabic")
    target = train_sentencepiece(["كتاب"] * 9, vocab_size=266, script="arabic", character_coverage=1.0)
    with pytest.raises(UserError, match="have the same score 0,"):
        merge_vocabularies(base, target)


def test_long_lines_and_reserved_characters_are_not_dropped():
    line = "abcdefgh " * 2000 + "\u2585 zyx"
    tokenizer = train_sentencepiece([line] * 3, vocab_size=280, character_coverage=1.0)
    assert {"▁abcdefgh", "z"} <= set(tokenizer.model.pieces)


@pytest.mark.parametrize(
    ("texts", "vocab_size", "message"),
    [
        ([], 300, "no line of the texts has characters"),
        (["", " \n "], 300, "no line of the texts has characters"),
        (TEXT, 5000, r"5000 pieces \(.*config.pieces .* too many for 5 lines of text; ask for at most 3"),
        (TEXT, 100, r"100 pieces \(.*config.pieces .* too few; .* need 29"),
    ],
)
def test_impossible_requests_are_explained(texts: list[str], vocab_size: int, message: str, tmp_path):
    with pytest.raises(UserError, match=message) as failure:
        train_sentencepiece(texts, vocab_size=vocab_size, output=tmp_path / "out")
    assert "\n" not in str(failure.value)
    assert not (tmp_path / "out").exists()


def test_an_error_of_the_source_is_not_buried():
    def texts():
        yield "hello"
        raise UserError("corpus.jsonl: line 2 is not JSON")

    with pytest.raises(UserError, match="line 2 is not JSON"):
        train_sentencepiece(texts(), vocab_size=300)


def test_output_is_saved(tmp_path):
    tokenizer = train_sentencepiece(TEXT, vocab_size=290, output=tmp_path / "tokenizer")
    assert Tokenizer.load(tmp_path / "tokenizer").fingerprint == tokenizer.fingerprint
