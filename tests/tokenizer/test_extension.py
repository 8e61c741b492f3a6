"""Pieces for a language in the base's own script: SentencePiece itself says how the result cuts text."""

import random
import re

import pytest
from tokenizer_helpers import reference

from allam_jax.errors import UserError
from allam_jax.tokenizer.piece_extension import extend_vocabulary, joined, measure_extension, scores_of
from allam_jax.tokenizer.sentencepiece_model import Piece
from allam_jax.tokenizer.sentencepiece_training import train_sentencepiece
from allam_jax.tokenizer.tokenizer import Tokenizer

SYLLABLES = ("nghiệ", "trườ", "ướ", "ngườ", "khôn", "đấ", "nhữ", "việ", "quyề", "thươ", "chú", "tiế", "hộ", "phá")
ENDINGS = ["p", "ng", "n", "t", "i", "c", "m", ""]


@pytest.fixture(scope="module")
def new_lines() -> list[str]:
    """A language of short words with letters that English lacks, some of which look English."""
    rng = random.Random(3)
    words = [s + e for s in SYLLABLES for e in ENDINGS] + ["tin", "thang", "lung", "nang", "ban", "than", "sinh"] * 3
    rng.shuffle(words)
    weights = [1 / (n + 1) for n in range(len(words))]
    return [" ".join(rng.choices(words, weights, k=12)) for _ in range(1500)]


@pytest.fixture(scope="module")
def english(corpus) -> list[str]:
    return corpus.train["en"]


@pytest.fixture(scope="module")
def base(english) -> Tokenizer:
    return train_sentencepiece(english[:3000], vocab_size=1200)


@pytest.fixture(scope="module")
def extended(base, new_lines, english) -> Tokenizer:
    return extend_vocabulary(base, new_lines[:1200], english, script="latin", pieces=300, limit=0.02)


def test_old_ids_stay_and_no_text_gets_more_tokens(base, extended, new_lines, english, corpus):
    assert [extended.id_to_piece(i) for i in range(base.vocab_size)] == [
        base.id_to_piece(i) for i in range(base.vocab_size)
    ]
    assert base.vocab_size + 100 < extended.vocab_size <= base.vocab_size + 302
    for line in english[:300] + new_lines[1200:1260] + corpus.test["code"][:100]:
        assert len(extended.encode(line)) <= len(base.encode(line))
        assert extended.decode(extended.encode(line)) == line
    saved = sum(len(base.encode(line)) - len(extended.encode(line)) for line in new_lines[1200:])
    assert saved > 0.5 * sum(len(base.encode(line)) for line in new_lines[1200:])


def test_new_pieces_are_letters_of_the_script_with_a_space_at_most_in_front(base, extended):
    pieces = [extended.id_to_piece(i) for i in range(base.vocab_size, extended.vocab_size - 2)]
    assert all(re.fullmatch(r"▁?[^\W\d_]+", piece) for piece in pieces)


def test_the_limit_holds_and_what_changes_has_a_new_piece(base, extended, english):
    new = {extended.id_to_piece(i) for i in range(base.vocab_size, extended.vocab_size)}
    changed = [line for line in english if base.encode(line) != extended.encode(line)]
    assert all(new & {extended.id_to_piece(i) for i in extended.encode(line)} for line in changed)
    share = sum(base.encode(line) != extended.encode(line) for line in english[1::2]) / len(english[1::2])
    assert 0 < share <= 0.02


def test_a_larger_limit_saves_more_and_none_changes_nothing_that_was_seen(base, new_lines, english):
    saved, equal = [], []
    for limit in (0.0, 0.02, 1.0):
        found = extend_vocabulary(base, new_lines[:1200], english[:2000], script="latin", pieces=300, limit=limit)
        measured = measure_extension(base, found, {"en": english[1:2000:2], "xx": new_lines[1200:]})
        saved.append(measured["xx_tokens_saved"])
        equal.append(measured["en_equal"])
    assert saved == sorted(saved)
    assert equal == sorted(equal, reverse=True)
    assert equal[0] == 1.0
    assert equal[1] >= 0.98


def test_ids_are_sentencepieces_own_and_those_of_transformers_file(extended, new_lines, english, tmp_path):
    import tokenizers

    extended.save(tmp_path)
    fast = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    slow = reference(extended)
    for line in new_lines[1200:1300] + english[:100]:
        assert slow.encode(line) == extended.encode(line) == fast.encode(line, add_special_tokens=False).ids


def test_what_is_counted_while_learning_is_what_sentencepiece_does(base, extended, new_lines):
    """The words of a line, joined by the scores alone, are the pieces of the whole line."""
    scores = scores_of(extended.model)
    for line in new_lines[1200:1300]:
        letters = ("▁" + line.replace(" ", "▁")).replace("▁", " ▁").split()
        by_words = [piece for word in letters for piece in joined(word, scores)]
        assert by_words == [extended.id_to_piece(i) for i in extended.encode(line)]


def test_what_is_measured_is_a_count(base, extended, english):
    lines = english[:500]
    measured = measure_extension(base, extended, {"en": lines})
    same = [base.encode(line) == extended.encode(line) for line in lines]
    tokens = [sum(len(t.encode(line)) for line in lines) for t in (base, extended)]
    assert measured == {
        "en_lines": 500,
        "en_equal": pytest.approx(sum(same) / 500),
        "en_tokens_saved": pytest.approx(1 - tokens[1] / tokens[0]),
    }


def test_a_base_with_the_scores_of_llama_2_for_white_space_keeps_its_order(base, new_lines, english):
    """Scores near -1e9, where float32 numbers are 64 apart: all new scores differ, and are below."""
    proto = type(base.model.proto)()
    proto.CopyFrom(base.model.proto)
    known = [piece for piece in proto.pieces if piece.piece == "▁▁"]
    spaces = known[0] if known else proto.pieces.add(piece="▁▁", type=Piece.NORMAL)
    spaces.score = -1e9
    proto.trainer_spec.vocab_size = len(proto.pieces)
    llama_like = Tokenizer.from_sentencepiece(proto.SerializeToString(), source="llama-like")
    found = extend_vocabulary(llama_like, new_lines[:300], english[:300], script="latin", pieces=100, limit=1.0)
    new = [p.score for p in found.model.proto.pieces[llama_like.vocab_size : -2]]
    assert len(set(new)) == len(new) > 50
    assert max(new) < -1e9
    assert new == sorted(new, reverse=True)
    assert found.encode("a  b") == llama_like.encode("a  b")


def test_texts_of_another_script_are_refused(base, english):
    with pytest.raises(UserError, match="no letter of script 'thai'"):
        extend_vocabulary(base, english[:10], english[:10], script="thai", pieces=10, limit=1.0)
