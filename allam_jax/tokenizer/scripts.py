"""Writing systems as sets of characters: those of the language by which a vocabulary is extended.

A script is named as in Unicode, by its name or its four letters of ISO 15924 in any case: "devanagari" or "Deva". Signs
join the names of scripts that a language uses together: "han+hiragana+katakana". A script has the characters that
Unicode's property Script_Extensions gives it, so signs that several scripts share (the danda of India) belong to each
of them. Scripts whose letters join or that have a virama also have the joiners U+200C and U+200D, with which Persian,
Urdu and the languages of India spell. (Emoji are joined by U+200D too: it counts as a character of these scripts
there.)
"""

import functools
import re
from collections.abc import Sequence

import regex

from allam_jax.errors import UserError

_Ranges = Sequence[tuple[int, int]]  # code points, both ends included

# Whole Unicode blocks, also code points that are not assigned yet; without non-characters and the mark U+FEFF.
_ARABIC: _Ranges = (
    (0x0600, 0x06FF),  # Arabic
    (0x0750, 0x077F),  # Supplement
    (0x0870, 0x08FF),  # Extended-B, Extended-A
    (0x200C, 0x200D),  # the joiners
    (0xFB50, 0xFDCF),  # Presentation Forms-A
    (0xFDF0, 0xFDFF),
    (0xFE70, 0xFEFC),  # Presentation Forms-B
    (0x10E60, 0x10E7F),  # Rumi numerals
    (0x10EC0, 0x10EFF),  # Extended-C
    (0x1EE00, 0x1EEFF),  # Mathematical alphabetic symbols
)
_JOINERS = "\u200c\u200d"
# Codes of ISO 15924 for several scripts together, which Unicode does not name.
_TOGETHER = {"Jpan": "han+hiragana+katakana", "Kore": "hangul+han", "Hans": "han", "Hant": "han"}

# Characters that a base vocabulary needs to spell Arabic in letters rather than bytes: the letters of Modern Standard
# Arabic, short vowels, tatweel, Arabic-Indic digits and punctuation.
ARABIC_LETTERS = "".join(map(chr, [*range(0x0621, 0x063B), *range(0x0640, 0x0653), 0x0670, 0x0671]))
ARABIC_SIGNS = "".join(map(chr, [0x060C, 0x061B, 0x061F, 0x066A, 0x066B, 0x066C, *range(0x0660, 0x066A)]))


def script_of_language(language: str) -> str:
    """The script that a language is mostly written in, by CLDR's likely subtags: "fa" -> "Arab".

    UserError for a code that CLDR does not know.
    """
    import langcodes  # here, because only recipes ask

    try:
        known = langcodes.Language.get(language)
        found = known.maximize().script if known.is_valid() else None
    except langcodes.tag_parser.LanguageTagError:
        found = None
    if not found:
        raise UserError(
            f"language {language!r}: no script is known for it; give a code of ISO 639, such as fa, or name it"
        )
    return _TOGETHER.get(found, found)


@functools.cache
def character_class(script: str) -> str:
    """The inside of a regular expression's character class, `\\u0600-\\u06ff...`; UserError for an unknown script."""
    ranges = [piece for name in script.split("+") for piece in _ranges(name.strip(), script=script)]
    return "".join(f"\\U{first:08x}-\\U{last:08x}" for first, last in ranges)


@functools.cache
def script_pattern(script: str) -> re.Pattern[str]:
    """A pattern that finds one character of the script: `script_pattern("arabic").search(text)`."""
    return re.compile(f"[{character_class(script)}]")


def has_letter_outside(script: str, text: str) -> bool:
    """Whether `text` has a letter (Unicode category L) of another script; signs and digits are not letters."""
    return any(map(str.isalpha, script_pattern(script).sub("", text)))


def _ranges(name: str, *, script: str) -> _Ranges:
    if name.lower() in ("arabic", "arab"):
        return _ARABIC
    try:
        found = regex.findall(rf"\p{{Script_Extensions={name}}}+", _all_characters())
    except regex.error:
        found = []
    if not found:
        raise UserError(
            f"script: unknown script {script!r}; expected names of Unicode, such as devanagari or han+hiragana"
        )
    if regex.search(r"\p{Joining_Type=Dual_Joining}|\p{Canonical_Combining_Class=Virama}", "".join(found)):
        found.append(_JOINERS)
    return [(ord(run[0]), ord(run[-1])) for run in found]


@functools.cache
def _all_characters() -> str:
    return "".join(map(chr, [*range(0xD800), *range(0xE000, 0x110000)]))
