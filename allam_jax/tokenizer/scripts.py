"""Writing systems as ranges of Unicode: the characters of the language by which a vocabulary is extended."""

import re

from allam_jax.errors import UserError

# Persian, Urdu and Kurdish spell with the joiners U+200C and U+200D, as do the languages of India. (Emoji are joined by
# U+200D too: it counts as a character of these scripts there.)
_JOINERS = (0x200C, 0x200D)

# Inclusive ranges of code points: whole Unicode blocks, without non-characters and the byte order mark U+FEFF; joiners.
SCRIPTS: dict[str, tuple[tuple[int, int], ...]] = {
    "arabic": (
        (0x0600, 0x06FF),  # Arabic
        (0x0750, 0x077F),  # Supplement
        (0x0870, 0x08FF),  # Extended-B, Extended-A
        (0xFB50, 0xFDCF),  # Presentation Forms-A
        (0xFDF0, 0xFDFF),
        (0xFE70, 0xFEFC),  # Presentation Forms-B
        (0x10E60, 0x10E7F),  # Rumi numerals
        (0x10EC0, 0x10EFF),  # Extended-C
        (0x1EE00, 0x1EEFF),  # Mathematical alphabetic symbols
        _JOINERS,
    ),
    "cyrillic": ((0x0400, 0x052F), (0x1C80, 0x1C8F), (0x2DE0, 0x2DFF), (0xA640, 0xA69F)),
    "devanagari": ((0x0900, 0x097F), (0xA8E0, 0xA8FF), (0x11B00, 0x11B5F), _JOINERS),
    "greek": ((0x0370, 0x03FF), (0x1F00, 0x1FFF)),
    "hangul": ((0x1100, 0x11FF), (0x3130, 0x318F), (0xA960, 0xA97F), (0xAC00, 0xD7FF)),
    "hebrew": ((0x0590, 0x05FF), (0xFB1D, 0xFB4F)),
    "thai": ((0x0E00, 0x0E7F),),
}

# Characters that a base vocabulary needs to spell Arabic in letters rather than bytes: the letters of Modern Standard
# Arabic, short vowels, tatweel, Arabic-Indic digits and punctuation.
ARABIC_LETTERS = "".join(map(chr, [*range(0x0621, 0x063B), *range(0x0640, 0x0653), 0x0670, 0x0671]))
ARABIC_SIGNS = "".join(map(chr, [0x060C, 0x061B, 0x061F, 0x066A, 0x066B, 0x066C, *range(0x0660, 0x066A)]))


def character_class(script: str) -> str:
    """The inside of a regular expression's character class, `\\u0600-\\u06ff...`; UserError for an unknown script."""
    if script not in SCRIPTS:
        raise UserError(f"script: unknown script {script!r}; expected one of {', '.join(sorted(SCRIPTS))}")
    return "".join(f"\\U{first:08x}-\\U{last:08x}" for first, last in SCRIPTS[script])


def script_pattern(script: str) -> re.Pattern[str]:
    """A pattern that finds one character of the script: `script_pattern("arabic").search(text)`."""
    return re.compile(f"[{character_class(script)}]")


def has_letter_outside(script: str, text: str) -> bool:
    """Whether `text` has a letter (Unicode category L) of another script; signs and digits are not letters."""
    return any(map(str.isalpha, script_pattern(script).sub("", text)))
