"""Replaces personal data of a known form by placeholders: e-mail addresses, telephone numbers, IBANs, IP addresses.

Digits may be European or Arabic-Indic.
"""

import ipaddress
import itertools
import re
from collections import Counter
from collections.abc import Container

_DIGIT = "0-9\u0660-\u0669\u06f0-\u06f9"
_TO_ASCII = str.maketrans("٠١٢٣٤٥٦٧٨٩۰۱۲۳۴۵۶۷۸۹", "01234567890123456789")

# In this order, because a part of an IBAN can look like a telephone number.
PATTERNS = {
    "email": re.compile(r"(?<![\w.+-])[\w.+-]{1,64}@(?:[\w-]{1,63}\.)+[^\W\d_]{2,24}(?![\w-])"),
    # Two letters, two check digits and 11 to 30 characters, in groups of four or in one piece. `_is_iban` then checks
    # the checksum.
    "iban": re.compile(r"(?<!\w)[A-Z]{2}\d{2}(?:[ -]?[A-Z0-9]{4}){2,7}(?:[ -]?[A-Z0-9]{1,3})?(?!\w)", re.ASCII),
    "ip": re.compile(
        r"(?<![\w.:])(?:\d{1,3}(?:\.\d{1,3}){3}(?!\.?\d)|(?:[0-9A-Fa-f]{0,4}:){2,7}[0-9A-Fa-f]{0,4})(?![\w:])", re.ASCII
    ),
    # International numbers with + or 00, or national ones with a leading 0; single separators between groups of digits.
    "phone": re.compile(
        rf"(?<![\w.,/-])(?P<phone>(?:\+|00|[٠۰]{{2}})[ (-]?[{_DIGIT}]{{1,3}}[)]?(?:[ .()-]{{0,2}}[{_DIGIT}]){{6,12}}"
        rf"|[(]?[0٠۰][{_DIGIT}]{{1,3}}[)]?(?:[ .-]?[{_DIGIT}]){{6,8}})(?![\w/-]|[.,:][{_DIGIT}])"
    ),
}

# What looks like a telephone number with a leading 0 and is none: a date, also one with a time after it; times or
# ranges in pairs (08.30-09.45); a version number or an address of four parts.
_NO_PHONE = re.compile(
    r"(?:0?[1-9]|[12]\d|3[01])(?P<sign>[ .-])(?:0?[1-9]|[12]\d|3[01])(?P=sign)"
    r"(?:\d{4}(?!\d)|(?<! )\d{2}(?!\d|(?P=sign)))"
    r"|\d\d(?P<inner>[.-])\d\d(?:(?!(?P=inner))[ .-]\d\d(?P=inner)\d\d)+$"
    r"|\d{1,3}(?:\.\d{1,3}){3}$"
)
_ISBN = re.compile(r"ISBN(?:-1[03])?[:\s]{0,3}\Z")


def redact(text: str, *, kinds: Container[str]) -> tuple[str, Counter[str]]:
    """Replaces personal data by `[EMAIL]`, `[PHONE]`, `[IBAN]` or `[IP]`; returns the text and the count of each kind.

    An IBAN must have a correct checksum (ISO 7064: remainder 1 modulo 97). An IP address must be public; 127.0.0.1,
    192.168.x.x and version numbers with a part above 255 stay. So do dates, ranges, lists of numbers and ISBNs.
    """
    found: Counter[str] = Counter()
    for kind, pattern in PATTERNS.items():
        if kind not in kinds:
            continue

        kept, end, match = [], 0, pattern.search(text)
        while match:
            if _CHECKS[kind](match):
                found[kind] += 1
                kept += [text[end : match.start()], f"[{kind.upper()}]"]
                end = match.end()
                match = pattern.search(text, end)
            else:  # a true one may begin inside
                match = pattern.search(text, match.start() + 1)
        text = "".join([*kept, text[end:]])
    return text, found


def is_phone(match: re.Match[str]) -> bool:
    """Whether a match of the pattern `phone` is a telephone number, and no date, range, list or ISBN."""
    text = match["phone"].translate(_TO_ASCII)
    groups = re.findall(r"\d+", text)
    digits = "".join(groups)
    if not 8 <= len(digits) <= 15 or len(set(digits)) <= 2 or _NO_PHONE.match(text):
        return False
    pairs = set(map(len, groups)) == {2} and all(a < b for a, b in itertools.pairwise(groups))  # 03 04 05 06 07
    is_range = len(groups) == 2 and len(groups[0]) == len(groups[1]) and groups[1][0] == "0" and groups[0] < groups[1]
    return not (pairs or is_range or _ISBN.search(match.string, max(0, match.start() - 16), match.start()))


def _is_iban(match: re.Match[str]) -> bool:
    bare = re.sub("[ -]", "", match[0])
    return 15 <= len(bare) <= 34 and int("".join(str(int(char, 36)) for char in bare[4:] + bare[:4])) % 97 == 1


def _is_public_address(match: re.Match[str]) -> bool:
    try:
        return ipaddress.ip_address(match[0]).is_global
    except ValueError:
        return False


_CHECKS = {"email": lambda _: True, "iban": _is_iban, "ip": _is_public_address, "phone": is_phone}
