"""Repairs of damaged Arabic text, each a switch, each counted: mojibake, presentation forms, look-alike letters.

What is spelling stays: the salawat sign and its like (U+FDF0 and up), ornate brackets, the joiners.
"""

import re
import unicodedata
from collections.abc import Callable, Iterable

import ftfy
from ftfy.badness import is_bad

from allam_jax.errors import UserError

# Letter shapes and ligatures of letters, which NFKC spells out; not the signs that stand for a phrase.
_PRESENTATION_FORMS = re.compile("[\ufb50-\ufbb1\ufbd3-\ufd3d\ufd50-\ufd8f\ufd92-\ufdc7\ufe70-\ufefc]+")

# Letters and digits of Persian and Urdu keyboards that look like Arabic ones. Letters that Arabic lacks (پ چ ژ گ)
# spell loan words and names, and stay.
_LOOK_ALIKES = str.maketrans(
    {
        "ی": "ي",  # Farsi yeh; at the end of a word it can also mean alef maqsura, which nothing tells apart
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

# ftfy takes these for text: signs of devotion and ornate brackets (U+FDF0 and about), UTF-8 read as Latin-1.
_SIGNS = {sign.encode().decode("latin-1"): sign for sign in map(chr, (0xFD3E, 0xFD3F, *range(0xFDF0, 0xFDFE)))}
_SIGN = re.compile("|".join(_SIGNS))

_LATIN_1_LETTERS = re.compile("[À-ÿ]")
_ARABIC_LETTERS = re.compile("[\u0621-\u064a]")


def repair(text: str, *, switches: Iterable[str], language: str) -> tuple[str, list[str]]:
    """The text after the given repairs (of `REPAIRS`), and the names of those that changed it.

    Look-alike letters are replaced in Arabic (`language` ar) only: elsewhere they are right.

    Raises:
      UserError: Unknown repair.
    """
    wanted = set(switches)
    for name in wanted - set(REPAIRS):
        raise UserError(f"text care: no repair {name!r}; choose from {', '.join(REPAIRS)}")
    changed = []
    for name, function in REPAIRS.items():
        if name in wanted and not (name == "look_alikes" and language != "ar"):
            repaired = function(text)
            if repaired != text:
                changed.append(name)
                text = repaired
    return text, changed


def _mojibake(text: str) -> str:
    """Undoes decoding with the wrong character set: UTF-8 read as Windows-125x or Latin-1 (ftfy), Windows-1256 read
    as Windows-1252."""
    if text.isascii():
        return text
    repaired = _windows_1256(text)
    if repaired == text and is_bad(text):
        repaired = ftfy.fix_encoding(text)
    return _SIGN.sub(lambda match: _SIGNS[match.group()], repaired)


def _windows_1256(text: str) -> str:
    """Arabic in Windows-1256 that was read as Windows-1252, such as ÇáÓáÇã for السلام.

    No Latin spelling writes most of its letters with accents: half is out of reach for French or Vietnamese. Of
    Arabic in UTF-8, half of the bytes read as Ø, Ù, Ú or Û; here these are rare letters.
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


def _presentation_forms(text: str) -> str:
    return _PRESENTATION_FORMS.sub(lambda match: unicodedata.normalize("NFKC", match.group()), text)


def _look_alikes(text: str) -> str:
    return text.translate(_LOOK_ALIKES)


# In the order in which they are made: letters are told apart only once the bytes are right.
REPAIRS: dict[str, Callable[[str], str]] = {
    "mojibake": _mojibake,
    "presentation_forms": _presentation_forms,
    "look_alikes": _look_alikes,
}
