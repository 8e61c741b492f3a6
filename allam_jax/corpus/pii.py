"""Replaces personal data of a known form by placeholders: e-mail addresses, telephone numbers, IBANs, IP addresses.

Digits may be European or Arabic-Indic, and spaces those that do not break a line. Arabic letters may touch a number.
"""

import ipaddress
import itertools
import re
from collections import Counter
from collections.abc import Container

_DIGITS = "0-9\u0660-\u0669\u06f0-\u06f9"
_DIGIT = f"[{_DIGITS}]"
_WIDE = "\u00a0\u2007\u2009\u202f"  # spaces that do not break, or are narrow
_TO_ASCII = str.maketrans("٠١٢٣٤٥٦٧٨٩۰۱۲۳۴۵۶۷۸۹" + _WIDE + "\u2010\u2011", "0123456789" * 2 + " " * 4 + "--")
_LATIN = "A-Za-z_\u00c0-\u024f"
_IN_WORD = _DIGITS + _LATIN  # a number that touches one of these is a part of something else

# ISO 13616: length -> the countries whose IBANs are so long. The registry of SWIFT, release 99.
_IBAN_COUNTRIES = {
    15: "NO",
    16: "BE",
    18: "DK FI FK FO GL NL SD",
    19: "MK SI",
    20: "AT BA EE KZ LT LU MN XK",
    21: "CH HR LI LV",
    22: "BG BH CR DE GB GE IE ME RS VA",
    23: "AE GI IL IQ OM SO TL",
    24: "AD CZ ES MD PK RO SA SE SK TN VG",
    25: "LY PT ST",
    26: "IS TR",
    27: "BI DJ FR GR IT MC MR SM",
    28: "AL AZ BY CY DO GT HN HU LB NI PL SV",
    29: "BR EG PS QA UA",
    30: "JO KW MU YE",
    31: "MT SC",
    32: "LC",
    33: "RU",
}


def _ibans() -> str:
    """An expression for the country, two check digits and the rest, in groups of four or in one piece."""
    gap, character = f"[ {_WIDE}-]?", f"[{_DIGITS}A-Za-z]"
    found = []
    for length, countries in _IBAN_COUNTRIES.items():
        names = "|".join(f"(?i:{country})" for country in countries.split())
        groups, rest = divmod(length - 4, 4)
        end = f"{gap}{character}{{{rest}}}" if rest else ""
        found.append(f"(?:{names}){_DIGIT}{{2}}(?:{gap}{character}{{4}}){{{groups}}}{end}")
    return "|".join(found)


_GROUP = f"[ {_WIDE}.\u2010\u2011-]?{_DIGIT}"  # a digit of a telephone number, and the sign before it
_LOCAL = f"[(]?[0٠۰]{_DIGIT}{{1,3}}[)]?(?:{_GROUP}){{6,8}}"
_ABROAD = rf"(?:\+|00|[٠۰]{{2}})[ {_WIDE}(-]?{_DIGIT}{{1,3}}[)]?(?:[ {_WIDE}.()\u2010\u2011-]{{0,2}}{_DIGIT}){{6,12}}"
_V4 = rf"{_DIGIT}{{1,3}}(?:\.{_DIGIT}{{1,3}}){{3}}"

# In this order, because a part of an IBAN can look like a telephone number.
PATTERNS = {
    # The name may hold apostrophes and other signs that mail allows, but begins with none.
    "email": re.compile(
        r"(?<![\w.+-])[\w.+-][\w.+'’!#$%&*^~-]{0,63}@(?:[\w-]{1,63}\.)+"
        r"(?:[xX][nN]--[A-Za-z0-9-]{0,58}[A-Za-z0-9]|[^\W\d_]{2,24})(?![^\W_])"
    ),
    # `_is_iban` then checks the checksum.
    "iban": re.compile(
        rf"(?=[A-Za-z]{{2}}{_DIGIT}{{2}})(?:(?<![{_IN_WORD}])|(?<=[Ii][Bb][Aa][Nn]))(?:{_ibans()})(?![{_DIGITS}A-Za-z])"
    ),
    "ip": re.compile(
        rf"(?<![{_IN_WORD}.:])(?:[0-9A-Fa-f]{{0,4}}:){{2,7}}(?:{_V4}|[0-9A-Fa-f]{{0,4}})(?![{_IN_WORD}:])"
        rf"|(?<![{_IN_WORD}.]){_V4}(?![{_IN_WORD}]|\.{_DIGIT})"
    ),
    # International numbers with + or 00, or national ones with a leading 0; single separators between groups of digits.
    # A comma or slash may stand between two numbers.
    "phone": re.compile(
        rf"(?=[(+0٠۰])(?:(?<![{_IN_WORD}.,/-])|(?<={_DIGIT}{{4}}[,/]))(?P<phone>{_ABROAD}|{_LOCAL})"
        rf"(?![{_IN_WORD}-]|[.:]{_DIGIT}|[,/](?:(?={_DIGIT})(?!{_LOCAL}|{_ABROAD})|[{_LATIN}]))"
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
_DIGIT_GROUP = re.compile(r"\d+")
_IBAN_VALUES = {  # ISO 13616: letters count from 10
    **{code: str(int(chr(code), 36)) for code in (*range(ord("A"), ord("Z") + 1), *range(ord("a"), ord("z") + 1))},
    **{code: "" if other in (ord(" "), ord("-")) else other for code, other in _TO_ASCII.items()},
    **dict.fromkeys(map(ord, " -"), ""),
}
_IBAN_HEAD = 6  # digits of the country and the check, which the checksum takes last


def redact(text: str, *, kinds: Container[str]) -> tuple[str, Counter[str]]:
    """Replaces personal data by `[EMAIL]`, `[PHONE]`, `[IBAN]` or `[IP]`; returns the text and the count of each kind.

    An IBAN must have its country's length and a correct checksum (ISO 7064: remainder 1 modulo 97). An IP address must
    be public; 127.0.0.1, 192.168.x.x and version numbers with a part above 255 stay. So do dates, ranges, lists of
    numbers and ISBNs.
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
            else:  # a true IBAN may begin inside; a part of a date is no telephone number
                match = pattern.search(text, match.start() + 1 if kind == "iban" else match.end())
        text = "".join([*kept, text[end:]])
    return text, found


def is_phone(match: re.Match[str]) -> bool:
    """Whether a match of the pattern `phone` is a telephone number, and no date, range, list or ISBN."""
    text = match["phone"].translate(_TO_ASCII)
    groups = _DIGIT_GROUP.findall(text)
    digits = "".join(groups)
    if not 8 <= len(digits) <= 15 or len(set(digits)) <= 2 or _NO_PHONE.match(text):
        return False
    if len(groups) > 1:
        alike = len(set(map(len, groups))) == 1
        steps = {int(b) - int(a) for a, b in itertools.pairwise(groups)}
        # 03 04 05 06 07, and 001 002 003 004 005
        listed = alike and (len(groups[0]) == 2 and min(steps) > 0 or len(groups) > 2 and steps <= {1})
        first, second = groups[:2]
        is_range = len(groups) == 2 and len(first) == len(second) and second[0] == "0" and first < second
        if listed or is_range:
            return False
    return not _ISBN.search(match.string, max(0, match.start() - 16), match.start())


def _is_iban(match: re.Match[str]) -> bool:
    digits = match[0].translate(_IBAN_VALUES)
    return int(digits[_IBAN_HEAD:] + digits[:_IBAN_HEAD]) % 97 == 1


def _is_public_address(match: re.Match[str]) -> bool:
    try:
        address = ipaddress.ip_address(match[0].translate(_TO_ASCII))
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv6Address):
        # All public ones are in 2000::/3; A::B is a name in C++.
        inner = address.ipv4_mapped
        return inner.is_global if inner else address.is_global and address in _UNICAST
    return address.is_global


_UNICAST = ipaddress.ip_network("2000::/3")
_CHECKS = {"email": lambda _: True, "iban": _is_iban, "ip": _is_public_address, "phone": is_phone}
