import sys
import unicodedata

import pytest

from allam_jax.corpus.normalise import DIRECTION_MARKS, TASHKEEL, normalise, without_marks


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
