"""Every tag, repair, redaction, key and extraction from a page takes time in proportion to the text, whatever it is.

A quadratic expression takes over a minute for 200 kB of its worst input, and a hundred times as long for 2 MB.
"""

import time

import pytest

from allam_jax.corpus import keys, pii, tags
from allam_jax.corpus.minhash import MinHash
from allam_jax.corpus.normalise import normalise
from allam_jax.corpus.settings import DedupSettings
from allam_jax.corpus.tags import Resources
from allam_jax.corpus.text_care import REPAIRS
from allam_jax.corpus.web_archives import archive_records
from allam_jax.corpus.words import Words

PATTERNS = {
    "one token": "a",
    "new lines": "\n",
    "spaces": " ",
    "spaces and new lines": " \n",
    "at signs": "a@",
    "at signs and points": "a@a.",
    "points": ".",
    "labels": "a.",
    "marks": "\u064e",
    "a letter with marks": "ب\u064e\u0651",
    "marks of alternating classes": "\u0301\u0316",
    "marks that are two marks": "\u0f73",
    "marks beyond U+FFFF": "\U0001d165\U0001e8d0",
    "digits": "0",
    "digits and hyphens": "05-",
    "groups of digits": "0123 ",
    "hexadecimal and colons": "ab:",
    "less-than signs": "<",
    "underscores": "_",
    "underscores with marks": "_\u0301",
    "apostrophes": "a'",
    "Hebrew quotation": 'א"',
    "commands of fastText": "</s> ",
    "forms of marks": "\ufe76",
    "forms of marks of two classes": "\ufe7c\ufe76",
    "numbers of IBANs": "SA03 8000 ",
    "numbers with commas": "0501234567,",
    "colons": "::",
    "Thai": "ภาษาไทย",
    "Chinese": "中文",
    "mojibake": "Ø§Ù„",
    "Windows-1256": "ÇáÓ",
    "emoji": "👨\u200d👩",
}


def timed(text, tmp_path):
    """Name -> seconds of every operation on the text."""
    block_list = tmp_path / "blocked"
    block_list.write_text("a\na b c\n中文\n")
    resources = Resources(block_list=str(block_list))
    words = Words(text, language="ar")
    operations = {f"repair {name}": lambda repair=repair: repair(text) for name, repair in REPAIRS.items()}
    operations["composed"] = lambda: normalise(text)
    for name in ("tashkeel", "tatweel", "direction_marks"):
        operations[f"remove {name}"] = lambda name=name: normalise(text, remove=[name])
    for kind in pii.PATTERNS:
        operations[f"redact {kind}"] = lambda kind=kind: pii.redact(text, kinds=[kind])
    for name, tag in tags.TAGS.items():
        if name != "rps_doc_ml_palm_score":  # a model of the user's
            operations[name] = lambda tag=tag: tag.compute(words, resources)
    archive = tmp_path / "a.warc"
    page = f"<html><head><title>t</title></head><body><article><p>{text}</p></article></body></html>".encode()
    http = b"HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=utf-8\r\n\r\n" + page
    header = "WARC/1.0\r\nWARC-Type: response\r\nWARC-Target-URI: http://a.example\r\nContent-Length: %d\r\n\r\n"
    archive.write_bytes((header % len(http)).encode() + http + b"\r\n\r\n")
    operations["extraction from a page"] = lambda: list(archive_records(archive, text_field="text", limit=2**30))
    minhash = MinHash(DedupSettings(minhash=True))
    operations["key of the text"] = lambda: keys.text_key(text, words.words)
    operations["shingles"] = lambda: minhash.shingles([words.words])
    seconds = {}
    for name, operation in operations.items():
        start = time.process_time()
        operation()
        seconds[name] = time.process_time() - start
    return seconds


@pytest.mark.parametrize("pattern", PATTERNS)
def test_two_hundred_kilobytes(pattern, tmp_path):
    text = PATTERNS[pattern] * (200_000 // len(PATTERNS[pattern].encode()))
    assert [name for name, seconds in timed(text, tmp_path).items() if seconds > 1] == []


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("pattern", PATTERNS)
def test_two_megabytes(pattern, tmp_path):
    text = PATTERNS[pattern] * (2_000_000 // len(PATTERNS[pattern].encode()))
    seconds = timed(text, tmp_path)
    assert {name: round(value, 1) for name, value in seconds.items() if value > 2} == {}
