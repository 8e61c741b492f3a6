"""Scripts against the names of characters in Python's own Unicode tables."""

import sys
import unicodedata

import pytest

from allam_jax.errors import UserError
from allam_jax.tokenizer.scripts import has_letter_outside, script_of_language, script_pattern


@pytest.mark.parametrize(
    ("script", "word"),
    [
        ("arabic", "ARABIC"),
        ("Deva", "DEVANAGARI"),
        ("bengali", "BENGALI"),
        ("Ethiopic", "ETHIOPIC"),
        ("khmer", "KHMER"),
        ("cyrillic", "CYRILLIC"),
        ("georgian", "GEORGIAN"),
        ("ol_chiki", "OL CHIKI"),
        ("hiragana", "HIRAGANA"),
    ],
)
def test_letters_are_those_that_unicode_names(script, word):
    inside = script_pattern(script).match
    letters = [c for c in map(chr, range(sys.maxunicode)) if unicodedata.category(c) in ("Lo", "Lu", "Ll")]
    named = {
        c
        for c in letters
        if unicodedata.name(c, "").startswith(
            (f"{word} LETTER", f"{word} CAPITAL", f"{word} SMALL", f"{word} SYLLABLE")
        )
    }
    others = {c for c in letters if unicodedata.name(c, "").startswith(("LATIN", "HEBREW LETTER", "TAMIL LETTER"))}
    assert len(named) > 25
    assert all(map(inside, named))
    assert not any(map(inside, others))


def test_joiners_belong_to_scripts_that_spell_with_them():
    for script in ("arabic", "devanagari", "bengali", "malayalam", "syriac"):
        assert script_pattern(script).fullmatch("\u200d")
        assert not has_letter_outside(script, "\u200c")
    for script in ("latin", "greek", "hangul", "han+hiragana+katakana"):
        assert not script_pattern(script).search("\u200c\u200d")


def test_signs_of_several_scripts_belong_to_each():
    assert all(script_pattern(script).match("।") for script in ("devanagari", "bengali", "Gujr"))


def test_scripts_of_languages():
    codes = {"fa": "Arab", "hi": "Deva", "vi": "Latn", "uk": "Cyrl", "am": "Ethi", "ja": "han+hiragana+katakana"}
    assert {code: script_of_language(code) for code in codes} == codes
    assert all(map(script_pattern(script_of_language("ja")).match, "日ひカ"))
    for name in ("klingon", "a}b", ""):
        with pytest.raises(UserError, match="unknown script"):
            script_pattern(name)
    with pytest.raises(UserError, match="no script is known"):
        script_of_language("no code")
