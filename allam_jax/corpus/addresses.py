"""Addresses of documents: what is one, and which are equal."""

import re
from typing import NamedTuple
from urllib.parse import urlsplit

_WEB = ("", "http", "https")
_DEFAULT_PORTS = {"http": "80", "https": "443"}
_SCHEME = re.compile(r"(?:[A-Za-z][A-Za-z0-9+.-]*:)?//")
# Without a scheme before it, a host must look like one: labels, the last of which begins with a letter.
_BARE_HOST = re.compile(r"(?:[\w-]{1,63}\.)+[^\W\d_][\w-]+|(?:\d{1,3}\.){3}\d{1,3}")
_HOST = re.compile(r"[^\s/?#@\\<>\"'{}|^`]+")


class Address(NamedTuple):
    """An address.

    Attributes:
        host: in lower case, without `www.` and port.
        key: equal for equal addresses. `http` and `https`, `www.`, the usual port, the fragment and a final slash of
            the path make no difference; the case of scheme and host makes none, that of the rest does.
    """

    host: str
    key: str


def parse_address(text: str) -> Address | None:
    """The address that a text is, with or without its scheme; None for what is no address.

    Names, numbers, words for nothing (`None`, `NaN`), fragments, and schemes without a host (`urn:`) are none.
    """
    text = text.strip()
    bare = not _SCHEME.match(text)
    try:
        parts = urlsplit(f"//{text}" if bare else text)
        host = (parts.hostname or "").removesuffix(".")
    except ValueError:  # brackets without an address of IPv6 in them
        return None
    user, at, place = parts.netloc.rpartition("@")
    if (at and bare) or not (_BARE_HOST if bare else _HOST).fullmatch(host):
        return None
    host = host.removeprefix("www.")
    port = place.rpartition(":")[2] if re.search(r":\d+$", place) else ""
    kind = parts.scheme.lower()
    usual = port in _DEFAULT_PORTS.values() if kind == "" else port == _DEFAULT_PORTS.get(kind)
    key = "" if kind in _WEB else f"{kind}://"
    key += f"{user}{at}{host}" + (f":{port}" if port and not usual else "") + parts.path.rstrip("/")
    return Address(host, key + (f"?{parts.query}" if parts.query else ""))
