"""Pieces of documents: they rejoin byte for byte, fit, end at the best borders, and take linear time."""

import random
import re
import time

import pytest

from allam_jax.errors import UserError
from allam_jax.rewriting.document_pieces import count_by_bytes, patterns_of, pieces_of, rejoin, sentences_of


def count_words(texts):
    return [len(text.split()) for text in texts]


def cut(text, most=8, **given):
    pieces = pieces_of(text, most_tokens=most, count=count_words, **given)
    assert "".join(piece.text for piece in pieces) == text
    assert rejoin(pieces, [None] * len(pieces)) == text
    return [piece.text for piece in pieces if not piece.kept]


@pytest.mark.parametrize(
    ("text", "most", "expected"),
    [
        ("", 8, []),
        (" \n\n \t", 8, []),
        ("one two", 8, ["one two"]),
        ("\n one two \n\n three four\n", 8, ["one two \n\n three four"]),
        ("one two three\n\nfour five six", 4, ["one two three", "four five six"]),
        ("one two\n\nthree four\n\nfive", 4, ["one two\n\nthree four", "five"]),
        ("a b c\nd e f", 3, ["a b c", "d e f"]),
        ("قال ذلك. ثم سكت؟ نعم", 2, ["قال ذلك.", "ثم سكت؟", "نعم"]),
        ("It is 3.5 m. Yes!", 4, ["It is 3.5 m.", "Yes!"]),
        ("これは一。それは二。", 1, ["これは一。それは二。"]),  # one word between spaces
        ("a b c d e f", 2, ["a b", "c d", "e f"]),
        ("***\n\none\n\n---", 1, ["one"]),
    ],
)
def test_borders(text, most, expected):
    found = cut(text, most)
    assert [" ".join(piece.split()) for piece in found] == [" ".join(piece.split()) for piece in expected]


def test_a_paragraph_is_not_cut_where_it_fits():
    text = "one. two.\nthree.\n\n" + "four " * 8
    assert cut(text) == ["one. two.\nthree.", ("four " * 8).strip()]


def test_marked_passages_are_kept():
    keep = patterns_of(["﴿[^﴿﴾]*﴾", r"(?m)^> .*?$"], key="rewrite.keep")
    text = "قال تعالى ﴿قل هو الله أحد﴾ وهذا واضح.\n> quoted line\nend"
    pieces = pieces_of(text, most_tokens=50, count=count_words, keep=keep)
    kept = "".join(piece.text for piece in pieces if piece.kept)
    assert "﴿قل هو الله أحد﴾" in kept
    assert "> quoted line" in kept
    assert [piece.text for piece in pieces if not piece.kept] == ["قال تعالى", "وهذا واضح.", "end"]
    assert rejoin(pieces, [None if piece.kept else piece.text.upper() for piece in pieces]).endswith("\nEND")


@pytest.mark.parametrize(("pattern", "problem"), [("(", "is no regular expression"), ("a*", "fits an empty text")])
def test_bad_patterns(pattern, problem):
    with pytest.raises(UserError, match=rf"config.rewrite.keep: .*{problem}"):
        patterns_of([pattern], key="rewrite.keep")


def test_sentences_stay_apart_for_translation():
    text = "One is here. Two is there!\nThree\n\nFour."
    assert cut(text, 50, by_sentence=True) == ["One is here.", "Two is there!", "Three", "Four."]


def test_random_texts_rejoin_and_fit():
    rng = random.Random(1)
    for _ in range(300):
        text = "".join(rng.choice("ab سلام.؟!\n \n\n\t﴿﴾é。\u00a0") for _ in range(rng.randrange(120)))
        keep = patterns_of(["﴿[^﴿﴾]*﴾"], key="x")
        most = rng.randint(1, 12)
        pieces = pieces_of(text, most_tokens=most, count=count_by_bytes, keep=keep, by_sentence=rng.random() < 0.3)
        assert "".join(piece.text for piece in pieces) == text
        for piece in pieces:
            assert piece.text
            if not piece.kept:
                assert piece.text == piece.text.strip()
                assert len(piece.text.encode()) <= 3 * most or len(piece.text) == 1
                assert re.search(r"\w", piece.text)


@pytest.mark.parametrize("unit", ["word ", "x", "كلمة طويلة ", "Sentence here. ", "line\n", "\n", "a\n \n", "[", "。"])
def test_a_megabyte_takes_linear_time(unit):
    def seconds(size):
        text = unit * (size // len(unit))
        best = float("inf")
        for _ in range(2):
            begun = time.process_time()
            pieces = pieces_of(text, most_tokens=256, count=count_by_bytes)
            best = min(best, time.process_time() - begun)
        assert "".join(piece.text for piece in pieces) == text
        return best

    small, large = seconds(100_000), seconds(800_000)
    assert large < 20 * small + 0.05  # 64 times as long if it were quadratic


def test_a_run_of_dots_takes_linear_time():
    start = time.process_time()
    text = "Contents " + "." * 100_000 + "12 end. More"
    assert list(sentences_of(text)) == [text[:-4], "More"]
    assert time.process_time() - start < 5  # a search from each dot would take a minute and more
