"""Word boundaries by the Unicode Standard's Annex 29 (UAX 29), for every script, as regular expressions.

A combining mark belongs to the letter before it, so vowel signs (Devanagari, Bengali, Thai, Hebrew points, tashkeel)
stay in their word. Apostrophes, points and colons between letters, points and commas between digits, and underscores do
not end a word. In scripts that are written without spaces (Chinese, Japanese, Thai, Lao, Khmer, Burmese), each
character with its marks is a word of its own, as the annex does it without a dictionary. Two rare cases differ from the
annex: an apostrophe after a Hebrew letter is left out before a digit, and an emoji after a joiner is no part of a word.

The properties of characters come from the `regex` package. The expressions are for `re`, which is five times faster.
"""

import functools
import re

import regex

_PROPERTIES = {  # letter in the templates below -> the values of Word_Break that it stands for
    "A": ("ALetter",),
    "H": ("Hebrew_Letter",),
    "N": ("Numeric",),
    "K": ("Katakana",),
    "J": ("ExtendNumLet",),
    "M": ("Extend", "Format", "ZWJ"),
    "L": ("MidLetter", "MidNumLet", "Single_Quote"),
    "D": ("MidNum", "MidNumLet", "Single_Quote"),
}
_LAST_OF_BMP, _ASTRAL = 0xFFFF, "\U00010000-\U0010ffff"

# All loops are possessive: what follows a loop is never in its class, so nothing is tried twice.
_LETTERS = "[A][AM]*+(?:[L][M]*+(?=[AH]))?+"  # rules 4 to 7
_HEBREW = "[H][HM]*+(?:\"[M]*+[H][HM]*+)*+(?:[L][M]*+(?=[AH])|'[M]*+(?![AHNJ]))?+"  # rules 7a to 7c
_DIGITS = "[N][NM]*+(?:[D][M]*+(?=[N]))?+"  # rules 8, 11, 12
_RUN = f"(?:(?:{_LETTERS}|{_HEBREW}|{_DIGITS})++|[K][KM]*+)"  # rules 5, 9, 10, 13
_EXACT = f"(?:{_RUN}|[J][JM]*+{_RUN}?+)(?:[J][JM]*+{_RUN}?+)*+|[O][M]*+"  # rules 13a, 13b
# A class with characters beyond U+FFFF is slow for `re`. So the word of letters, digits and marks below U+10000, with
# nothing behind it that may continue it, is tried first (`a`, `m`, `s` are AHN, AHNM, AHNKJO as far as U+FFFF), then
# one of ASCII letters with apostrophes or points between them, and the rest only where a word can begin.
_END = "(?!(?=[LDJZ\"])(?:[LD\"][mZ]|[JZ]|'(?<=[HM]')))"
_JOINED = f"[A-Za-z]++(?:[L][A-Za-z]++)++(?![m]){_END}"
_WORD = f"[a][m]*+{_END}|{_JOINED}|(?=[sZ])(?:{_EXACT})"
_BETWEEN = r"(?:[^\ssZ]++|[Z](?<![AHNKJO]))++"


def find_words(text: str) -> list[str]:
    """The words of a text: the segments of UAX 29 that have a letter or a digit."""
    words = _compiled(_WORD).findall(text)
    if _compiled("[J]").search(text):
        only_joiners = _compiled("[JM]+").fullmatch
        words = [word for word in words if not only_joiners(word)]
    return words


def without_inner_punctuation(words: str) -> str:
    """Words that are joined by spaces, with a space for each run of the punctuation that a word may contain."""
    apart = _compiled('[LDJ"]+').sub(" ", words)
    return " ".join(apart.split()) if apart != words else words


def find_tokens(text: str) -> list[str]:
    """The words of a text, and the runs of characters between them that are no spaces."""
    return _compiled(f"{_WORD}|{_BETWEEN}").findall(text)


@functools.cache
def _compiled(template: str) -> re.Pattern[str]:
    classes = _classes()
    in_brackets = re.compile(r"\[(\^?(?:\\s)?)([A-Za-z\"]+)\]")
    return re.compile(
        in_brackets.sub(lambda match: f"[{match[1]}{''.join(classes.get(key, key) for key in match[2])}]", template)
    )


@functools.cache
def _classes() -> dict[str, str]:
    """Letter of the templates -> the inside of its character class. `O`: letters and digits of no other class."""
    assigned = "".join(map(chr, [*range(0xD800), *range(0xE000, 0x40000), *range(0xE0000, 0xE1000)]))
    sets = {key: "".join(rf"\p{{WB={value}}}" for value in values) for key, values in _PROPERTIES.items()}
    sets["O"] = rf"[\p{{L}}\p{{N}}]--[{''.join(sets[key] for key in 'AHNKJM')}]"
    found = {key: regex.findall(f"[{inside}]+", assigned, regex.V1) for key, inside in sets.items()}
    classes = {key: "".join(map(_range, runs)) for key, runs in found.items()}
    for key, members in (("a", "AHN"), ("m", "AHNM"), ("s", "AHNKJO")):
        classes[key] = "".join(_range(run) for some in members for run in found[some] if ord(run[-1]) <= _LAST_OF_BMP)
    return classes | {"Z": _ASTRAL}


def _range(run: str) -> str:
    """A run of found characters inside a character class. Characters of one run follow each other in Unicode."""
    return f"{re.escape(run[0])}-{re.escape(run[-1])}"
