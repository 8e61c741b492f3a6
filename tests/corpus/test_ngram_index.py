"""The n-gram index against brute force over tuples of words."""

import numpy as np
import pytest

from allam_jax.corpus.ngram_index import NgramIndex


def grams_of(words, n):
    return [tuple(words[start : start + n]) for start in range(len(words) - n + 1)]


@pytest.fixture(scope="module")
def texts():
    rng = np.random.default_rng(0)
    return [[f"w{word}" for word in rng.integers(0, 4, size)] for size in (30, 0, 3, 8, 5, 9, 21, 4, 6, 30)]


@pytest.mark.parametrize("n", [5, 8])
def test_matches_are_those_of_brute_force(texts, n):
    rng = np.random.default_rng(1)
    index = NgramIndex.build([" ".join(text) for text in texts], n=n)
    numbered = []  # (text, n-gram) of every number
    for number, text in enumerate(texts):
        if len(text) >= 5:
            numbered += [(number, gram) for gram in grams_of(text, min(n, len(text)))]
    assert index.grams == len(numbered)
    np.testing.assert_array_equal(index.text_of(np.arange(index.grams)), [text for text, _ in numbered])

    documents = [[f"w{word}" for word in rng.integers(0, 4, size)] for size in (200, 0, 4, 60)] + [texts[0]]
    everything = np.zeros(index.grams, bool)
    for document, found in zip(documents, index.find([" ".join(words) for words in documents]), strict=True):
        wanted = {
            (at, len(gram), number)
            for number, (_, gram) in enumerate(numbered)
            for at, own in enumerate(grams_of(document, len(gram)))
            if own == gram
        }
        listed = list(zip(found.at.tolist(), found.length.tolist(), found.gram.tolist(), strict=True))
        assert set(listed) == wanted
        assert len(listed) == len(wanted)
        covered = {word for at, length, _ in wanted for word in range(at, at + length)}
        assert found.share == (len(covered) / len(document) if document else 0)
        by_text = {}
        for number in {number for _, _, number in wanted}:
            by_text[numbered[number][0]] = by_text.get(numbered[number][0], 0) + 1 / index.counts[numbered[number][0]]
        assert index.texts_in(found) == pytest.approx(by_text)
        everything[found.gram] = True
    shares = index.shares(everything)
    assert shares[0] == 1.0  # its own text was among the documents
    assert shares[1] == shares[2] == shares[7] == 0.0  # too short to be indexed
    for number in range(len(texts)):
        own = [everything[place] for place, (text, _) in enumerate(numbered) if text == number]
        assert shares[number] == pytest.approx(np.mean(own) if own else 0.0)


def test_spelling_makes_no_difference():
    index = NgramIndex.build(["ما عاصمة المملكة العربية السعودية؟", "What is the capital of France?"], n=13)
    vowelled, shouted, other = index.find(
        ["سؤال: مَا عَاصِمَةُ المَمْلَكَةِ العَرَبِيَّةِ السُّعُودِيَّةِ؟", "WHAT, is the capital: of FRANCE", "What is the capital of Spain?"]
    )
    assert index.texts_in(vowelled) == {0: 1.0}
    assert vowelled.at.tolist() == [1]
    assert index.texts_in(shouted) == {1: 1.0}
    assert shouted.share == 1.0
    assert index.texts_in(other) == {}
    assert NgramIndex.build([], n=13).find(["a b c d e f"])[0].share == 0.0
