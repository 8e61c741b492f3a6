"""Text normalisation: Unicode composition (NFC) and, on request, removal of the marks listed here."""

import re
import unicodedata
from collections.abc import Iterable

# Short vowels, tanwin, shadda, sukun; the superscript alef; further vowel signs; honorifics; Quranic annotation.
# Maddah and hamza above or below (U+0653-0655) are spelling and stay. So do the Quran's small waw and yeh (U+06E5,
# U+06E6), which are letters.
_TASHKEEL_RANGES = (
    (0x0610, 0x061A),
    (0x064B, 0x0652),
    (0x0656, 0x065F),
    (0x0670, 0x0670),
    (0x06D6, 0x06DC),
    (0x06DF, 0x06E4),
    (0x06E7, 0x06E8),
    (0x06EA, 0x06ED),
    (0x08CA, 0x08E1),
    (0x08E3, 0x08FF),
)
TASHKEEL = frozenset(chr(code) for first, last in _TASHKEEL_RANGES for code in range(first, last + 1))

TATWEEL = "\u0640"

# Invisible characters that order the display of mixed-direction text. The joiners U+200C and U+200D are spelling.
DIRECTION_MARKS = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\ufeff")

_MARKS = re.compile("[" + "".join(sorted(TASHKEEL | DIRECTION_MARKS)) + TATWEEL + "]+")
_REMOVABLE = {
    name: dict.fromkeys(map(ord, marks))
    for name, marks in (("tashkeel", TASHKEEL), ("tatweel", TATWEEL), ("direction_marks", DIRECTION_MARKS))
}


def normalise(text: str, *, remove: Iterable[str] = (), compose: bool = True) -> str:
    """The text without the given classes of marks, composed to NFC. Applying it twice changes nothing more.

    The classes are `tashkeel`, `tatweel` and `direction_marks`. Marks are removed first, so that letters which a mark
    kept apart are composed.
    """
    for name in remove:
        text = text.translate(_REMOVABLE[name])
    return unicodedata.normalize("NFC", text) if compose else text


def without_marks(text: str) -> str:
    """The text without vowel marks, tatweel and direction marks, for comparing and counting; not for storing."""
    return _MARKS.sub("", text)
