"""Which texts are addresses, and which addresses are equal."""

import json

import pytest

from allam_jax.corpus.addresses import parse_address
from allam_jax.corpus.steps import _string

SAME = [
    ("http://y.com/a", "https://y.com/a", "//y.com/a", "y.com/a", "www.y.com/a", "https://www.y.com/a"),
    ("HTTP://WWW.Z.COM/a", "http://z.com:80/a/", "https://z.com:443/a", "z.com:80/a", " z.com/a\n"),
    ("http://y.com", "http://y.com/", "http://y.com//", "y.com", "http://y.com#a", "http://y.com.", "y.com?", "Y.Com/"),
    ("http://y.com/a?b=c#d", "https://www.y.com/a/?b=c"),
    ("https://مثال.com/أ", "مثال.com/أ"),
    ("ftp://y.com/a", "FTP://www.y.com/a#b"),
    ("http://[2001:db8::1]/a", "https://[2001:DB8::1]:443/a/"),
    ("8.8.8.8/a", "http://8.8.8.8:80/a"),
    ("http://localhost/a", "//localhost/a"),
]
OTHERS = [
    *("http://y.com/A", "http://y.com/a?b=C", "http://y.com:8080/a", "http://m.y.com/a"),
    *("http://user@y.com/a", "http://USER@y.com/a", "http://y.com/a;b", "http://y.com/a/b", "http://y.com/%7Ea"),
]


@pytest.mark.parametrize("group", SAME)
def test_equal_addresses(group):
    assert len({parse_address(text).key for text in group}) == 1
    assert len({parse_address(text).host for text in group}) == 1


def test_different_addresses():
    texts = [*OTHERS, *(group[0] for group in SAME)]
    assert len({parse_address(text).key for text in texts}) == len(texts)


@pytest.mark.parametrize(
    "value",
    [
        *("", " ", "#a", "/a/b", "?q=a", "None", "none", "null", "N/A", "-", "NaN", "dQw4w9WgXcQ", "a b", "http://"),
        *(float("nan"), float("inf"), 5, 1.5, 1.5e-07, 1e300, True, False, [], {}, ["http://y.com"], {"a": "y.com"}),
        *("mailto:a@y.com", "a@y.com", "urn:isbn:1", "javascript:void(0)", "data:text/html,a", "http://[1", "://a"),
        *("see y.com", "http://a b.com/", "http:///a", "C:\\a.txt", "file:///a", "1.2.3", "http://?a"),
    ],
)
def test_what_is_no_address(value):
    assert parse_address(_string(value)) is None
    assert parse_address(json.dumps(value)) is None


def test_the_host_is_the_domain():
    assert parse_address("https://user:word@www.News.Example.com:8080/a").host == "news.example.com"
