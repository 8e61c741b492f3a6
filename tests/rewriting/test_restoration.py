"""Planted damage inside documents, what is measured of its removal, by hand and with the perfect rewrite."""

import random
import zlib

import pytest
from planted_rewrites import originals

from allam_jax.rewriting import restoration
from allam_jax.rewriting.inner_damage import damaged
from allam_jax.rewriting.restoration import (
    blocked,
    diversity,
    scores,
    share_kept,
    share_of_facts,
    share_removed,
    still_there,
    with_interval,
)
from allam_jax.rewriting.rules_worker import cleaned
from allam_jax.rewriting.settings import DAMAGE_KINDS

INSULTS = {"insult": ("dirty swine", "وغد"), "unknown_insult": ("foul knave",)}


def damaged_documents(kinds=DAMAGE_KINDS):
    for number, (language, text) in enumerate(originals(16)):
        yield (
            language,
            damaged(
                text, language=language, insults=INSULTS, shares=dict.fromkeys(kinds, 1.0), rng=random.Random(number)
            ),
        )


@pytest.mark.parametrize("kind", DAMAGE_KINDS)
def test_each_kind_is_planted_and_can_be_taken_out(kind):
    for _, found in damaged_documents((kind,)):
        assert {one for one, _ in found.planted} == {kind}
        assert all(still_there(text, found.text) for _, text in found.planted)
        assert not any(still_there(text, found.original) for _, text in found.planted)
        rest = found.text
        for _, text in found.planted:
            rest = rest.replace(text, text.replace("\n", " ") if kind == "broken_lines" else "", 1)
        assert rest.split() == found.original.split()


def test_all_kinds_together_are_counted():
    spam = []
    for language, found in damaged_documents():
        planted = {"x": found.planted}
        worst = scores({"x": found.original}, planted, {"x": found.text})
        best = scores({"x": found.original}, planted, {"x": found.original})
        assert worst["removed"] == [0.0]
        assert best["removed"] == best["clean text kept"] == [1.0]
        assert {f"removed: {kind}" for kind in DAMAGE_KINDS} <= best.keys()
        gone = scores({"x": found.original}, planted, {})
        assert gone["removed"] == [1.0]
        assert gone["clean text kept"] == [0.0]
        rules = cleaned(found.text, language=language, blocked=[("dirty", "swine"), ("وغد",)])
        by_rules = scores({"x": found.original}, planted, {"x": rules})
        assert by_rules["removed: insult"] == [1.0]
        assert by_rules["removed: boilerplate"] == [1.0]
        spam += by_rules["removed: spam"]
    # A line of which less than a quarter is contacts and words of advertising stays.
    assert sum(spam) / len(spam) > 0.8


def test_no_place_and_no_chance_leave_a_text_alone():
    for text, shares in (("Too short.", {"insult": 1.0, "broken_lines": 1.0}), ("a b " * 30, {})):
        found = damaged(text, language="en", insults=INSULTS, shares=shares, rng=random.Random(0))
        assert found.text == text
        assert found.planted == []


def test_measures_by_hand():
    assert share_removed(["buy now", "the\nriver"], "to the\nriver, Buy  now!") == 0.0
    assert share_removed(["buy now", "the\nriver"], "to the river, buy it now") == 1.0
    assert share_removed([], "x") is None
    assert share_kept("a b c d", "a b c x") == 0.5
    assert share_of_facts("On 3/4/2024 he paid 7 and 9.", "٩ على 3.4.2024") == pytest.approx(2 / 3)
    assert blocked(["you dirty swine, Dirty swine", "fine words"], frozenset({("dirty", "swine")})) == {
        "documents with any": 0.5,
        "in 1,000 words": pytest.approx(1000 * 2 / 7),
    }
    found = diversity(["a b a", "b"])
    assert found["distinct 1-grams"] == 0.5
    assert found["distinct 2-grams"] == 1.0
    assert found["compressed"] == len(zlib.compress(b"a b ab")) / 6


def test_intervals_hold_the_mean_and_grow_with_the_spread(monkeypatch):
    values = [float(n % 2) for n in range(400)]
    found = with_interval(values, seed=1)
    assert found["mean"] == 0.5
    # The normal approximation: 1.96 * 0.5 / sqrt(400).
    assert found["high"] - found["mean"] == pytest.approx(0.049, abs=0.008)
    monkeypatch.setattr(restoration, "_AT_ONCE", 7 * 400)  # of the 1,000 draws seven at a time
    assert with_interval(values, seed=1) == found
    assert with_interval([1.0, 1.0], seed=0) == {"mean": 1.0, "low": 1.0, "high": 1.0, "documents": 2}
