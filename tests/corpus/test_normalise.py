import random
import sys
import unicodedata

import pytest

from allam_jax.corpus.normalise import DIRECTION_MARKS, TASHKEEL, normalise, to_form, with_sorted_marks, without_marks


def test_nfc_alone_is_unicodedata():
    text = "".join(chr(code) for code in range(0x20, 0xFFFF) if not 0xD800 <= code < 0xE000)
    assert normalise(text) == unicodedata.normalize("NFC", text)


def test_tashkeel_are_all_the_arabic_marks_but_maddah_and_hamza():
    """Unicode's own categories are the truth: nonspacing marks named ARABIC, save those that spell a letter."""
    marks = {
        chr(code)
        for code in range(sys.maxunicode)
        if unicodedata.category(chr(code)) == "Mn" and unicodedata.name(chr(code), "").startswith("ARABIC")
    }
    spelling = {"\u0653", "\u0654", "\u0655"}
    # The extended block has grown with every Unicode version: what this Python knows of it must be covered.
    in_scope = {mark for mark in marks if ord(mark) < 0x0870 or 0x08CA <= ord(mark) <= 0x08FF}
    assert in_scope - spelling <= TASHKEEL
    unassigned = {mark for mark in TASHKEEL if unicodedata.category(mark) == "Cn"}
    assert TASHKEEL - unassigned <= marks
    assert not TASHKEEL & spelling


def test_direction_marks_are_format_characters_and_not_joiners():
    assert all(unicodedata.category(mark) == "Cf" for mark in DIRECTION_MARKS)
    assert not DIRECTION_MARKS & {"\u200c", "\u200d"}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("بِسْمِ اللَّهِ الرَّحْمَٰنِ", "بسم الله الرحمن"),
        ("ٱلۡحَمۡدُ لِلَّهِ رَبِّ ٱلۡعَٰلَمِينَ", "ٱلحمد لله رب ٱلعلمين"),
        ("آمن ا\u0653من", "آمن آمن"),  # a decomposed maddah is spelling: it composes, and stays
        ("مسؤول ئ ء", "مسؤول ئ ء"),
        ("Crème 123 été", "Crème 123 été"),  # other scripts keep their accents
    ],
)
def test_removing_tashkeel(given, expected):
    assert normalise(given, remove=["tashkeel"]) == expected


def test_removing_tatweel_and_direction_marks():
    assert normalise("مـــد \u200f.\u200f", remove=["tatweel", "direction_marks"]) == "مد ."
    assert normalise("مـد\u200f") == "مـد\u200f"


def test_idempotent():
    text = "بِسْمِ ا\u064e\u0653 e\u0301\u064b"
    for remove in ([], ["tashkeel"], ["tashkeel", "tatweel", "direction_marks"]):
        once = normalise(text, remove=remove)
        assert normalise(once, remove=remove) == once
        assert unicodedata.is_normalized("NFC", once)


def test_without_marks_is_the_removal_of_all_classes():
    text = "بِسْمِ ا\u0653 مـد\u200f e\u0301"
    everything = normalise(text, remove=["tashkeel", "tatweel", "direction_marks"], compose=False)
    assert without_marks(text) == everything == "بسم ا\u0653 مد e\u0301"


# Marks of many combining classes, and characters of class 0 that are decomposed to marks.
MARKS = (
    "\u0301\u0316\u0327\u0345\u0650\u0651\u064e\u0653\u0654\u05b0\u05c1"
    "\u0344\u0f73\u0f75\u0f81\u0340\U0001d165\U0001e8d0"
)
ALPHABET = MARKS + "aeكا가\u1100\u1161\u11a8é\u1ea5\u0958ﷺﻻ\u2126\ufb2c"


@pytest.mark.parametrize("form", ["NFC", "NFD", "NFKC"])
def test_forms_are_unicodedatas(form):
    rng = random.Random(0)
    for _ in range(300):
        text = "".join(rng.choices(ALPHABET, k=rng.randint(1, 20)))
        for _ in range(rng.randint(0, 2)):
            text += "".join(rng.choices(MARKS, k=rng.choice((100, 127, 128, 129, 160, 300)))) + rng.choice(ALPHABET)
        assert to_form(form, text) == unicodedata.normalize(form, text)


def test_every_mark_is_known():
    """All of Unicode: long runs with any character that is decomposed to marks are put in order."""
    for code in range(sys.maxunicode + 1):
        if unicodedata.combining(unicodedata.normalize("NFD", chr(code))[0]):
            classes = list(map(unicodedata.combining, with_sorted_marks((chr(code) + "\u0301\u0316") * 50)))
            assert classes == sorted(classes), hex(code)
