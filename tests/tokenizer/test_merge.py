import random
import re
import unicodedata

import numpy as np
import pytest
from tokenizer_helpers import Corpus, Merge, reference, sentencepiece_model

from allam_jax.errors import UserError
from allam_jax.tokenizer.fertility import fertility
from allam_jax.tokenizer.kinds import Kind
from allam_jax.tokenizer.piece_merge import merge_vocabularies, verify_merge
from allam_jax.tokenizer.scripts import script_pattern
from allam_jax.tokenizer.sentencepiece_training import train_sentencepiece
from allam_jax.tokenizer.tokenizer import Tokenizer

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


def is_arabic_only(line: str) -> bool:
    """Has Arabic, and every letter is Arabic."""
    letters = [c for c in line if unicodedata.category(c).startswith("L")]
    return bool(ARABIC.search(line)) and all(map(ARABIC.match, letters))


def test_whole_arabic_lines_get_the_pieces_of_the_arabic_model(languages: Merge, corpus: Corpus, awkward_lines):
    arabic, merged = reference(languages.arabic), reference(languages.merged)
    for kind in ("ar", "classical"):
        lines = list(filter(is_arabic_only, corpus.test[kind]))
        assert len(lines) == len(corpus.test[kind]) == 600
        # Punctuation and digits are in them, at which the two models could differ.
        assert sum(bool(re.search(r"[-.:()\[\]\"]", line)) for line in lines) > 300
        pieces = arabic.encode(lines, out_type=str)
        assert merged.encode(lines, out_type=str) == pieces
        assert fertility(languages.merged, lines) == fertility(languages.arabic, lines)
        assert fertility(languages.merged, lines)["tokens"] == sum(map(len, pieces))
    strange = list(filter(is_arabic_only, awkward_lines)) + ["  (ال  -:  ال)\t1٢3 « ا»--  ....\u0301ا ☺ ｡ا 😀"]
    assert len(strange) > 500
    assert merged.encode(strange, out_type=str) == arabic.encode(strange, out_type=str)


def test_lines_without_arabic_get_the_ids_of_the_base(languages: Merge, corpus: Corpus, awkward_lines):
    lines = [line for line in corpus.test["en"] + corpus.test["code"] + awkward_lines if not ARABIC.search(line)]
    assert len(lines) > 900
    assert reference(languages.merged).encode(lines) == reference(languages.base).encode(lines)
    assert fertility(languages.merged, lines) == fertility(languages.base, lines)


def test_the_check_counts_every_kind_of_line(languages: Merge, corpus: Corpus):
    lines = [line for kind in corpus.test.values() for line in kind]
    check = verify_merge(languages.base, languages.arabic, languages.merged, [*lines, ""])
    counts = {
        "arabic_lines": sum(map(is_arabic_only, lines)),
        "mixed_lines": sum(bool(ARABIC.search(line)) and not is_arabic_only(line) for line in lines),
        "non_arabic_lines": sum(not ARABIC.search(line) for line in lines),
    }
    assert check == {**counts, "arabic_equal": 1.0, "mixed_equal": 1.0, "non_arabic_equal": 1.0, "differing": []}
    assert counts["arabic_lines"] == 1200
    assert counts["mixed_lines"] > 400  # ﷺ stands in most of the English lines
    assert counts["non_arabic_lines"] > 700


def test_the_merge_costs_no_arabic_token(languages: Merge, corpus: Corpus):
    tokens = {n: fertility(getattr(languages, n), corpus.test["ar"])["tokens"] for n in ("base", "arabic", "merged")}
    assert tokens["merged"] == tokens["arabic"] < 0.65 * tokens["base"]


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
    text = "-ابتث"
    merged = merge_vocabularies(base, target)
    assert [merged.id_to_piece(i) for i in merged.encode(text)][2:] == ["ا", "بت", "ث"]
    assert verify_merge(base, target, merged, [text])["arabic_equal"] == 1.0
    check = verify_merge(base, target, base, [text])
    assert check["arabic_equal"] == 0.0
    assert check["differing"][0]["expected"][-3:] == ["ا", "بت", "ث"]
    # The row is still there, with its text, and is no special token.
    retired = merged.piece_to_id("ابت")
    assert retired == base.piece_to_id("ابت")
    assert merged.decode([retired]) == "ابت"
    assert not merged.is_special(retired)


@pytest.mark.parametrize("seed", [*range(8), 142, 159])
def test_exact_for_any_pair_of_models(seed: int):
    rng = random.Random(seed)

    def text(letters: str) -> list[str]:
        return ["".join(rng.choices(letters, k=rng.randint(1, 30))) for _ in range(150)]

    # Few letters, so that everything overlaps; the base knows much of the script in another order of merges.
    base = train_sentencepiece(
        text("ابت ") + text("xy-.  ") + text("ا ب  xy") + text(" -..  ا"), vocab_size=345, required_characters="ابتث"
    )
    target = train_sentencepiece(
        text("اابت ") + text("ابت،. xy-ج"), vocab_size=350, like=base, script="arabic", character_coverage=1.0
    )
    merged = merge_vocabularies(base, target, control_tokens=())
    assert Kind.RETIRED in merged.model.kinds
    only_one_knows = [("ث", base, target), ("ج", target, base)]
    assert [known.piece_to_id(c) is not None for c, known, _ in only_one_knows] == [True, True]
    lines = text("ابتثج ") + text("ابت،-.  ") + text("ابتxy-.،  é") + text("xy-.  é")
    check = verify_merge(base, target, merged, lines)
    shares = [check[f"{kind}_equal"] for kind in ("arabic", "mixed", "non_arabic")]
    assert shares == [1.0, 1.0, 1.0], check["differing"]
    assert all(check[f"{kind}_lines"] > 100 for kind in ("arabic", "mixed", "non_arabic"))
    truth = reference(merged)
    for line in filter(is_arabic_only, lines):
        assert truth.encode(line, out_type=str) == brute_force(reachable_scores(target), line)


def test_a_merged_model_can_be_the_base_of_another_merge(trained_base: Tokenizer, corpus: Corpus):
    classical = train_sentencepiece(corpus.train["classical"], vocab_size=1200, like=trained_base, script="arabic")
    once = merge_vocabularies(trained_base, classical)
    modern = train_sentencepiece(corpus.train["ar"], vocab_size=3500, like=once, script="arabic")
    twice = merge_vocabularies(once, modern)
    retired = {piece for piece, kind in zip(once.model.pieces, once.model.kinds, strict=True) if kind is Kind.RETIRED}
    assert retired & set(modern.model.pieces)  # the second merge wants them back
    check = verify_merge(trained_base, modern, twice, [line for kind in corpus.test.values() for line in kind])
    assert check["differing"] == []
    assert twice.special_tokens == once.special_tokens


def test_a_word_keeps_its_space_before_signs_of_the_base_that_end_in_one():
    letters = dict.fromkeys("▁ابx-", -100.0)
    signs = {"▁▁": -30.0, "-▁": -1.0}  # far above the runs of spaces
    base = sentencepiece_model({**signs, "▁x": -2.0, **letters})
    target = sentencepiece_model({"▁ا": -50.0, "اب": -60.0, **letters})
    merged = merge_vocabularies(base, target, control_tokens=())
    assert [merged.id_to_piece(i) for i in merged.encode("x  ا- ا")] == ["▁x", "▁", "▁ا", "-", "▁ا"]
    assert merged.encode("x   x- -x") == base.encode("x   x- -x")


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


def test_each_kind_of_difference_is_told():
    letters = dict.fromkeys("▁ابxyz-", -100.0)
    base = sentencepiece_model({"xy": -1.0, "yz": -2.0, "--": -3.0, **letters})
    target = sentencepiece_model({"اب": -1.0, "با": -2.0, "--": -150.0, **letters})
    right = {"اب": 0.9, "با": 0.8, "xy": -1.0, "yz": -2.0, "--": -3.0, **letters}
    lines = ["ابا--", "xyzابا", "xyz--"]

    def shares(**changed: float) -> tuple:
        pieces = {**right, **changed}
        check = verify_merge(base, target, sentencepiece_model(pieces), lines)
        assert [check[f"{kind}_lines"] for kind in ("arabic", "mixed", "non_arabic")] == [1, 1, 1]
        wrong = [kind for kind in ("arabic", "mixed", "non_arabic") if check[f"{kind}_equal"] == 0]
        assert [entry["kind"] for entry in check["differing"]] == wrong
        assert all(entry["expected"] != entry["got"] for entry in check["differing"])
        return tuple(wrong)

    # Ids do not matter on Arabic lines, but they do on others: so the hand-made model keeps the base's order.
    order = {**dict.fromkeys(["xy", "yz", "--"], 0.0), **letters}
    right = {piece: right[piece] for piece in [*order, "اب", "با"]}
    assert shares() == ()
    assert shares(**{"با": 0.95}) == ("arabic", "mixed")
    assert shares(**{"yz": -0.5}) == ("mixed", "non_arabic")
    assert shares(**{"-ا": -9.0, "ا-": -0.1}) == ("arabic",)


def test_a_model_with_its_own_signs_is_not_called_equal(trained_base: Tokenizer, corpus: Corpus):
    own_signs = train_sentencepiece(corpus.train["ar"], vocab_size=4096, like=trained_base)
    check = verify_merge(trained_base, own_signs, merge_vocabularies(trained_base, own_signs), corpus.test["ar"])
    assert 0.5 < check["arabic_equal"] < 1.0
    assert check["differing"]


def test_other_scripts():
    english = ["the quick brown fox jumps over the lazy dog, again and again"] * 3
    russian = ["съешь же ещё этих мягких французских булок, да выпей чаю"] * 3
    base = train_sentencepiece(english, vocab_size=300)
    target = train_sentencepiece(russian, vocab_size=330, like=base, script="cyrillic")
    merged = merge_vocabularies(base, target, script="cyrillic")
    check = verify_merge(base, target, merged, [*english, *russian, english[0] + russian[0]], script="cyrillic")
    assert (check["cyrillic_equal"], check["mixed_equal"], check["non_cyrillic_equal"]) == (1.0, 1.0, 1.0)
    assert (check["cyrillic_lines"], check["mixed_lines"], check["non_cyrillic_lines"]) == (3, 1, 3)
    assert len(merged.encode(russian[0])) < len(base.encode(russian[0])) / 3


def test_the_arabic_script_is_the_arabic_blocks_and_the_joiners():
    pattern = script_pattern("arabic")
    for inside in "اپ،؟٣َـﷺﻻ﷼ݐࢠ\u06dd\u200c\u200d":
        assert pattern.fullmatch(inside), hex(ord(inside))
    for outside in "a1 ▁.-\u200b\u200f\ufeffא\u0700é中":
        assert not pattern.search(outside), hex(ord(outside))


@pytest.mark.parametrize(
    "flag", [{"add_dummy_prefix": False}, {"treat_whitespace_as_suffix": True}, {"split_digits": False}]
)
def test_refuses_other_flags(flag: dict):
    letters = dict.fromkeys("▁اب", -100.0)
    base, target = sentencepiece_model(letters), sentencepiece_model({"اب": -1.0, **letters}, **flag)
    with pytest.raises(UserError, match=f"{next(iter(flag))} differs .*like=base"):
        merge_vocabularies(base, target)


def test_refuses_what_it_cannot_merge(trained_base: Tokenizer):
    latin = sentencepiece_model({"ab": -1.0, "a": -2.0, "b": -3.0, "▁": -4.0})
    with pytest.raises(UserError, match="no piece of script 'arabic'"):
        merge_vocabularies(trained_base, latin)
    arabic = sentencepiece_model({"اب": -1.0, "ا": -2.0, "ب": -3.0, "▁": -4.0})
    with pytest.raises(UserError, match="'the': already an ordinary piece"):
        merge_vocabularies(sentencepiece_model({"the": -1.0}), arabic, control_tokens=["the"])
    with pytest.raises(UserError, match="unknown script 'arabik'; expected names of Unicode"):
        merge_vocabularies(trained_base, arabic, script="arabik")
    proto = type(arabic.model.proto)()
    proto.CopyFrom(arabic.model.proto)
    proto.trainer_spec.byte_fallback = False
    del proto.pieces[3:259]
    without_bytes = Tokenizer.from_sentencepiece(proto.SerializeToString())
    with pytest.raises(UserError, match="expected byte_fallback"):
        merge_vocabularies(without_bytes, without_bytes)
