"""Text normalisation: Unicode composition (NFC) and, on request, removal of the marks listed here."""

import functools
import re
import unicodedata
from collections.abc import Iterable
from typing import Literal, NamedTuple

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

_LONG_RUN = 128  # Python needs n^2 / 4 steps for n marks that are not in order; up to here that is not much
_STRIDE = 16


def normalise(text: str, *, remove: Iterable[str] = (), compose: bool = True) -> str:
    """The text without the given classes of marks, composed to NFC. Applying it twice changes nothing more.

    The classes are `tashkeel`, `tatweel` and `direction_marks`. Marks are removed first, so that letters which a mark
    kept apart are composed.
    """
    for name in remove:
        text = text.translate(_REMOVABLE[name])
    return to_form("NFC", text) if compose else text


def to_form(form: Literal["NFC", "NFD", "NFKC"], text: str) -> str:
    """What `unicodedata.normalize` returns, in time proportional to the length of the text."""
    return unicodedata.normalize(form, with_sorted_marks(text))


def with_sorted_marks(text: str) -> str:
    """The text with all long runs of combining marks decomposed and in the canonical order of the Unicode Standard.

    The canonical forms stay the same. Python sorts each run by insertion, which takes minutes for a run of 600 kB.
    """
    patterns = _patterns()
    if len(text) < _LONG_RUN or text.isascii() or not patterns.sampled.search(text[::_STRIDE]):
        return text
    return patterns.long_run.sub(lambda run: "".join(sorted(_decomposed(run[0]), key=unicodedata.combining)), text)


def _decomposed(marks: str) -> str:
    return "".join(unicodedata.normalize("NFD", mark) for mark in marks)


class _Patterns(NamedTuple):
    sampled: re.Pattern[str]  # found in every `_STRIDE`th character of a text that has a long run, and in few others
    long_run: re.Pattern[str]


@functools.cache
def _patterns() -> _Patterns:
    """For characters that are, or are decomposed to, marks of another combining class than 0."""
    codes = range(0x300, 0x20000)  # there are none beyond
    marks = [chr(code) for code in codes if unicodedata.combining(unicodedata.normalize("NFD", chr(code))[0])]
    every, short = "".join(marks), "".join(mark for mark in marks if mark <= "\uffff")
    # A class with many characters beyond U+FFFF is slow for `re`; a range is not.
    return _Patterns(
        sampled=re.compile(f"[{short}\U00010000-\U0001ffff]{{{_LONG_RUN // _STRIDE}}}"),
        long_run=re.compile(f"(?:[{short}]|[\U00010000-\U0001ffff](?<=[{every}])){{{_LONG_RUN},}}"),
    )


def without_marks(text: str) -> str:
    """The text without vowel marks, tatweel and direction marks, for comparing and counting; not for storing."""
    return _MARKS.sub("", text)
