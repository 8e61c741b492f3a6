import random
import re

import numpy as np
import pytest
from tokenizer_helpers import Corpus, Merge, sentencepiece_model

from allam_jax.errors import UserError
from allam_jax.tokenizer.fertility import fertility
from allam_jax.tokenizer.kinds import Kind
from allam_jax.tokenizer.merge import merge, verify_merge
from allam_jax.tokenizer.scripts import script_pattern
from allam_jax.tokenizer.tokenizer import Tokenizer
from allam_jax.tokenizer.train import train_sentencepiece

ARABIC = re.compile("[\u0600-\u06ff\u0750-\u077f\u08a0-\u08ff\ufb50-\ufdcf\ufdf0-\ufdff\ufe70-\ufefc]")


def reachable_scores(tokenizer: Tokenizer) -> dict[str, float]:
    """Scores of the pieces that text may reach."""
    pieces = zip(tokenizer.model.proto.pieces, tokenizer.model.kinds, strict=True)
    return {piece.piece: piece.score for piece, kind in pieces if kind is Kind.NORMAL}


def brute_force(scores: dict[str, float], text: str) -> list[str]:
    """BPE by its definition: join the adjacent pair with the best score, the leftmost of equals, until none is left."""
    symbols = list(("▁" + text).replace(" ", "▁")) if text else []
    while True:
        joined = [a + b for a, b in zip(symbols, symbols[1:], strict=False)]
        pairs = [(-scores[piece], place) for place, piece in enumerate(joined) if piece in scores]
        if not pairs:
            break
        place = min(pairs)[1]
        symbols[place : place + 2] = [joined[place]]
    spelled = ([s] if s in scores else [f"<0x{byte:02X}>" for byte in s.encode()] for s in symbols)
    return [piece for pieces in spelled for piece in pieces]


def words_of_script(text: str) -> str:
    """The Arabic in a text: its characters and the spaces between them."""
    return " ".join("".join(c if ARABIC.match(c) else " " for c in text).split())


def test_arabic_is_segmented_as_by_the_arabic_model_and_the_rest_as_by_the_base(languages: Merge, corpus: Corpus):
    lines = [line for kind in corpus.test.values() for line in kind]
    check = verify_merge(languages.base, languages.arabic, languages.merged, lines)
    assert check["arabic_equal"] == 1.0, check["differing"]
    assert check["non_arabic_equal"] == 1.0, check["differing"]
    assert check["arabic_lines"] > 1100  # ﷺ stands in most of the English lines
    assert check["non_arabic_lines"] > 700


def test_fertility_is_that_of_the_better_model_on_each_side(languages: Merge, corpus: Corpus):
    arabic = [words_of_script(line) for line in corpus.test["ar"]]
    others = [line for kind in ("en", "code") for line in corpus.test[kind] if not ARABIC.search(line)]
    assert fertility(languages.merged, arabic) == fertility(languages.arabic, arabic)
    assert fertility(languages.merged, others) == fertility(languages.base, others)
    assert fertility(languages.merged, arabic)["tokens"] < 0.6 * fertility(languages.base, arabic)["tokens"]


def test_merged_ids_are_those_of_bpe_by_definition(languages: Merge, corpus: Corpus, awkward_lines: list[str]):
    lines = [line[:70] for kind in corpus.test.values() for line in kind[:60]] + awkward_lines[-100:]
    scores = reachable_scores(languages.merged)
    for line in lines:
        got = [languages.merged.id_to_piece(i) for i in languages.merged.encode(line)]
        assert got == brute_force(scores, line), line


def test_base_ids_stay_and_new_ones_follow(languages: Merge):
    base, arabic, merged = languages.base, languages.arabic, languages.merged
    assert merged.model.pieces[: base.vocab_size] == base.model.pieces
    added = merged.model.pieces[base.vocab_size :]
    assert added[-2:] == ["<|im_start|>", "<|im_end|>"]
    assert all(ARABIC.search(piece) for piece in added[:-2])
    assert set(added[:-2]) == {p for p in arabic.model.pieces if ARABIC.search(p)} - set(base.model.pieces)
    assert merged.model.proto.trainer_spec.vocab_size == merged.vocab_size == len(set(merged.model.pieces))
    assert merged.special_tokens == {
        **base.special_tokens,
        "<|im_start|>": merged.vocab_size - 2,
        "<|im_end|>": merged.vocab_size - 1,
    }


def test_no_two_arabic_scores_meet_in_float32(languages: Merge):
    scores = [
        np.float32(p.score)
        for p in languages.merged.model.proto.pieces
        if len(p.piece) > 1 and p.type == 1 and ARABIC.search(p.piece)
    ]
    assert len(set(scores)) == len(scores)


def test_retired_pieces_cannot_be_reached_even_as_a_step_to_another():
    # Target: bc comes first, so "abcd" is a|bc|d. Through base's "abc" one would get to "abcd".
    letters = dict.fromkeys("▁ابتث", -100.0)
    base = sentencepiece_model({"ابت": -1.0, **letters})
    target = sentencepiece_model({"بت": -1.0, "اب": -2.0, "تث": -3.0, "ابتث": -4.0, **letters})
    text = "xابتث"
    pieces = {policy: merge(base, target, base_only=policy) for policy in ("retire", "demote")}
    tokens = {policy: [m.id_to_piece(i) for i in m.encode(text)][2:] for policy, m in pieces.items()}
    assert tokens == {"retire": ["ا", "بت", "ث"], "demote": ["ابتث"]}
    assert verify_merge(base, target, pieces["retire"], [text])["arabic_equal"] == 1.0
    check = verify_merge(base, target, pieces["demote"], [text])
    assert check["arabic_equal"] == 0.0
    assert check["differing"][0]["expected"][-3:] == ["ا", "بت", "ث"]
    # The row is still there, with its text, and is no special token.
    retired = pieces["retire"].piece_to_id("ابت")
    assert retired == base.piece_to_id("ابت")
    assert pieces["retire"].decode([retired]) == "ابت"
    assert not pieces["retire"].is_special(retired)


@pytest.mark.parametrize("seed", range(8))
def test_exact_for_any_pair_of_models(seed: int):
    rng = random.Random(seed)

    def text(letters: str) -> list[str]:
        return ["".join(rng.choices(letters, k=rng.randint(1, 30))) for _ in range(150)]

    # Few letters, so that everything overlaps; the base knows much of the script in another order of merges.
    base = train_sentencepiece(
        text("ابت ") + text("xy-.  ") + text("ا ب  xy"), vocab_size=340, required_characters="ابت"
    )
    target = train_sentencepiece(text("اابت ") + text("ابت،. x"), vocab_size=350, like=base, script="arabic")
    merged = merge(base, target, control_tokens=())
    assert Kind.RETIRED in merged.model.kinds
    check = verify_merge(base, target, merged, text("ابت ") + text("ابتxy-.،  ") + text("xy-.  "))
    assert check["arabic_equal"] == check["non_arabic_equal"] == 1.0, check["differing"]
    assert check["arabic_lines"] > 200
    assert check["non_arabic_lines"] > 100


def test_a_merged_model_can_be_the_base_of_another_merge(trained_base: Tokenizer, corpus: Corpus):
    classical, modern = (
        train_sentencepiece(corpus.train[kind], vocab_size=size, like=trained_base, script="arabic")
        for kind, size in (("classical", 1200), ("ar", 3500))
    )
    once = merge(trained_base, classical)
    twice = merge(once, modern)
    retired = {piece for piece, kind in zip(once.model.pieces, once.model.kinds, strict=True) if kind is Kind.RETIRED}
    assert retired & set(modern.model.pieces)  # the second merge wants them back
    check = verify_merge(trained_base, modern, twice, corpus.test["ar"] + corpus.test["en"] + corpus.test["code"])
    assert check["arabic_equal"] == check["non_arabic_equal"] == 1.0, check["differing"]
    assert twice.special_tokens == once.special_tokens


def test_a_word_keeps_its_space_before_a_run_of_spaces():
    letters = dict.fromkeys("▁ابx", -100.0)
    base = sentencepiece_model({"▁▁": -1.0, "▁x": -2.0, **letters})
    target = sentencepiece_model({"▁ا": -50.0, "اب": -60.0, **letters})
    merged = merge(base, target, control_tokens=())
    assert [merged.id_to_piece(i) for i in merged.encode("x  ا")] == ["▁x", "▁", "▁ا"]
    assert merged.encode("x   x") == base.encode("x   x")


def test_outlier_scores_of_white_space_do_not_swallow_the_order(mistral: Tokenizer, corpus: Corpus):
    assert min(piece.score for piece in mistral.model.proto.pieces) == -1e9
    arabic = train_sentencepiece(corpus.train["ar"][:500], vocab_size=1000, like=mistral, script="arabic")
    merged = merge(mistral, arabic, base_only="demote")
    demoted = [p.score for p in merged.model.proto.pieces if p.piece in ("▁ال", "ال", "▁م")]
    assert all(-1e6 < score < 1e6 for score in demoted)


def test_the_score_zero_merge_is_told_apart(languages: Merge, corpus: Corpus):
    """The naive merge (every new piece with score 0) must fail the check, or the check proves nothing."""
    proto = type(languages.base.model.proto)()
    proto.CopyFrom(languages.base.model.proto)
    known = set(languages.base.model.pieces)
    for piece in languages.arabic.model.pieces:
        if piece not in known and ARABIC.search(piece):
            proto.pieces.add(piece=piece, score=0.0)
    naive = Tokenizer.from_sentencepiece(proto.SerializeToString(), source="naive")
    check = verify_merge(languages.base, languages.arabic, naive, corpus.test["ar"])
    assert check["arabic_equal"] < 0.5
    assert len(check["differing"]) == 5


def test_other_scripts_and_own_ranges():
    english = ["the quick brown fox jumps over the lazy dog, again and again"] * 3
    russian = ["съешь же ещё этих мягких французских булок, да выпей чаю"] * 3
    base = train_sentencepiece(english, vocab_size=300)
    target = train_sentencepiece(russian, vocab_size=330, like=base, script="cyrillic")
    merged = merge(base, target, script="cyrillic")
    assert merge(base, target, script=[(0x0400, 0x052F)]).fingerprint == merged.fingerprint
    check = verify_merge(base, target, merged, english + russian, script="cyrillic")
    assert (check["cyrillic_equal"], check["non_cyrillic_equal"]) == (1.0, 1.0)
    assert len(merged.encode(russian[0])) < len(base.encode(russian[0])) / 3


def test_the_arabic_script_is_the_arabic_blocks_and_nothing_else():
    pattern = script_pattern("arabic")
    for inside in "اپ،؟٣َـﷺﻻ﷼ݐࢠ\u06dd":
        assert pattern.fullmatch(inside), hex(ord(inside))
    for outside in "a1 ▁.-\u200c\u200f\ufeffא\u0700é中":
        assert not pattern.search(outside), hex(ord(outside))


@pytest.mark.parametrize(
    "flag", [{"add_dummy_prefix": False}, {"treat_whitespace_as_suffix": True}, {"split_digits": False}]
)
def test_refuses_other_flags(flag: dict):
    letters = dict.fromkeys("▁اب", -100.0)
    base, target = sentencepiece_model(letters), sentencepiece_model({"اب": -1.0, **letters}, **flag)
    with pytest.raises(UserError, match=f"{next(iter(flag))} differs .*like=base"):
        merge(base, target)


def test_refuses_what_it_cannot_merge(trained_base: Tokenizer):
    latin = sentencepiece_model({"ab": -1.0, "a": -2.0, "b": -3.0, "▁": -4.0})
    with pytest.raises(UserError, match="no piece of script 'arabic'"):
        merge(trained_base, latin)
    arabic = sentencepiece_model({"اب": -1.0, "ا": -2.0, "ب": -3.0, "▁": -4.0})
    with pytest.raises(UserError, match="'the': already an ordinary piece"):
        merge(sentencepiece_model({"the": -1.0}), arabic, control_tokens=["the"])
    with pytest.raises(UserError, match="unknown script 'arabik'; expected one of arabic"):
        merge(trained_base, arabic, script="arabik")
