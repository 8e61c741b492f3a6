"""Repairs of damaged Arabic text: mojibake, presentation forms and look-alike letters. Each is a setting of the source.

The repairs leave spelling alone: the salawat sign and similar signs (from U+FDF0), ornate brackets, joiners.
"""

import re
import unicodedata
from collections.abc import Callable, Container

import ftfy
from ftfy.badness import is_bad

from allam_jax.corpus.normalise import to_form

# Letter shapes and ligatures of letters, which NFKC spells out. Signs that stand for a phrase are not among them.
_PRESENTATION_FORMS = re.compile("[\ufb50-\ufbb1\ufbd3-\ufd3d\ufd50-\ufd8f\ufd92-\ufdc7\ufe70-\ufefc]+")

# Forms of vowel marks. NFKC spells them out with a space or tatweel as their carrier, which no text means.
_MARK_FORMS = {
    code: marks
    for code in (*range(0xFC5E, 0xFC64), *range(0xFCF2, 0xFCF5), *range(0xFE70, 0xFE80))
    if (marks := unicodedata.normalize("NFKC", chr(code)).lstrip(" \u0640")) != chr(code)
}

# Letters and digits of Persian and Urdu keyboards that look like Arabic ones. Letters that Arabic lacks (پ چ ژ گ) stay,
# because they spell loan words and names.
_LOOK_ALIKES = str.maketrans(
    {
        "ی": "ي",  # Farsi yeh; at the end of a word it may also stand for alef maqsura, which cannot be told apart
        "ێ": "ي",
        "ک": "ك",
        "ڪ": "ك",
        "ہ": "ه",
        "ھ": "ه",
        "ە": "ه",
        "ۀ": "هٔ",
        "ۃ": "ة",
        **dict(zip("۰۱۲۳۴۵۶۷۸۹", "٠١٢٣٤٥٦٧٨٩", strict=True)),
    }
)

# Signs of devotion and ornate brackets whose UTF-8 was read as Latin-1. Ftfy takes the result for correct text.
_SIGNS = {sign.encode().decode("latin-1"): sign for sign in map(chr, (0xFD3E, 0xFD3F, *range(0xFDF0, 0xFDFE)))}
_SIGN = re.compile("|".join(_SIGNS))

_LATIN_1_LETTERS = re.compile("[À-ÿ]")
_ARABIC_LETTERS = re.compile("[\u0621-\u064a]")


def repair(text: str, *, switches: Container[str], language: str) -> tuple[str, list[str]]:
    """Applies the given repairs (names of `REPAIRS`); returns the text and the names of those that changed it.

    Look-alike letters are replaced only in Arabic (`language` ar), because they are correct in other languages.
    """
    changed = []
    for name, function in REPAIRS.items():
        if name in switches and not (name == "look_alikes" and language != "ar"):
            repaired = function(text)
            if repaired != text:
                changed.append(name)
                text = repaired
    return text, changed


def _mojibake(text: str) -> str:
    """Undoes decoding with a wrong character set.

    Ftfy repairs UTF-8 that was read as Windows-125x or Latin-1; `_windows_1256` repairs Windows-1256 read as
    Windows-1252.
    """
    if text.isascii():
        return text
    repaired = _windows_1256(text)
    if repaired == text and is_bad(text):
        repaired = ftfy.fix_encoding(text)
    return _SIGN.sub(lambda match: _SIGNS[match.group()], repaired)


def _windows_1256(text: str) -> str:
    """Repairs Arabic in Windows-1256 that was read as Windows-1252, such as ÇáÓáÇã for السلام.

    More than half of the letters must have accents, which no Latin spelling reaches, not even French or Vietnamese.
    Ø, Ù, Ú and Û must be rare: they are half of the letters where Arabic in UTF-8 was read as Windows-1252.
    """
    letters, accented = sum(map(str.isalpha, text)), _LATIN_1_LETTERS.findall(text)
    if 2 * len(accented) <= letters or _ARABIC_LETTERS.search(text):
        return text
    if 4 * sum(letter in "ØÙÚÛ" for letter in accented) > len(accented):
        return text
    try:
        repaired = text.encode("cp1252").decode("cp1256")
    except UnicodeError:
        return text
    return repaired if len(_ARABIC_LETTERS.findall(repaired)) > letters / 2 else text


# The repairs in their order: those of letters come after the repair of the bytes.
REPAIRS: dict[str, Callable[[str], str]] = {
    "mojibake": _mojibake,
    "presentation_forms": lambda text: _PRESENTATION_FORMS.sub(
        lambda form: to_form("NFKC", form[0].translate(_MARK_FORMS)), text
    ),
    "look_alikes": lambda text: text.translate(_LOOK_ALIKES),
}
