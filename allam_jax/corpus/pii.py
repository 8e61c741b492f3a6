"""Replaces personal data of a known form by placeholders: e-mail addresses, telephone numbers, IBANs, IP addresses.

Digits may be European or Arabic-Indic.
"""

import ipaddress
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
        rf"(?<![\w.,/-])(?:(?:\+|00|[٠۰]{{2}})[ (-]?[{_DIGIT}]{{1,3}}[)]?(?:[ .()-]{{0,2}}[{_DIGIT}]){{6,12}}"
        rf"|[(]?[0٠۰][{_DIGIT}]{{1,3}}[)]?(?:[ .-]?[{_DIGIT}]){{6,8}})(?![\w/-]|[.,][{_DIGIT}])"
    ),
}


def redact(text: str, *, kinds: Container[str]) -> tuple[str, Counter[str]]:
    """Replaces personal data by `[EMAIL]`, `[PHONE]`, `[IBAN]` or `[IP]`; returns the text and the count of each kind.

    An IBAN must have a correct checksum (ISO 7064: remainder 1 modulo 97). An IP address must be public; 127.0.0.1,
    192.168.x.x and version numbers with a part above 255 stay.
    """
    found: Counter[str] = Counter()
    for kind, pattern in PATTERNS.items():
        if kind not in kinds:
            continue

        def replace(match: re.Match[str], kind: str = kind) -> str:
            if not _CHECKS[kind](match.group()):
                return match.group()
            found[kind] += 1
            return f"[{kind.upper()}]"

        text = pattern.sub(replace, text)
    return text, found


def _is_iban(text: str) -> bool:
    bare = re.sub("[ -]", "", text)
    return 15 <= len(bare) <= 34 and int("".join(str(int(char, 36)) for char in bare[4:] + bare[:4])) % 97 == 1


def _is_public_address(text: str) -> bool:
    try:
        return ipaddress.ip_address(text).is_global
    except ValueError:
        return False


def _is_phone(text: str) -> bool:
    digits = re.sub(r"\D", "", text.translate(_TO_ASCII))
    return 8 <= len(digits) <= 15 and len(set(digits)) > 2


_CHECKS = {"email": lambda _: True, "iban": _is_iban, "ip": _is_public_address, "phone": _is_phone}
