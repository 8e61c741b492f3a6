"""Pages and their encodings, against the tables of the WHATWG Encoding Standard (encoding.spec.whatwg.org)."""

import gzip
import sys
import zlib

import pytest
import zstandard

from allam_jax.corpus.web_encodings import BadContent, decoded_content, decoded_page, without_chunks

# Label, bytes, what the standard's index of that label's encoding has for them.
STANDARD = [
    ("ISO-8859-1", b"It\x92s \x93it\x94 \x97", "It’s “it” —"),
    (" latin1\n", b"\x80\x81\x9d", "€\x81\x9d"),
    ("us-ascii", b"caf\xe9", "café"),
    ("iso-8859-9", b"\xdd\x80", "İ€"),  # Windows-1254
    ("iso-8859-11", b"\xa1\x85", "ก…"),  # Windows-874
    ("windows-1253", b"\x81\xe1", "\x81α"),
    ("windows-1255", b"\xe0\xca\xd0", "א\u05ba\u05c0"),
    ("windows-1256", b"\xe3\xd1\x81\xc7", "مرپا"),
    ("gb2312", b"\x80\xe5L\x81\x40\xa3\xa0", "€錖丂\u3000"),  # GBK
    ("gb_2312-80", b"\x84\x31\x95\x33", "\ufeff"),  # four bytes: GB18030
    # The edition of 2022 of GB18030 (whatwg/encoding#336).
    ("gbk", bytes.fromhex("a6d9a6daa6dba6dca6dd"), "\ufe10\ufe12\ufe11\ufe13\ufe14"),
    ("gbk", bytes.fromhex("a6dea6dfa6eca6eda6f3"), "\ufe15\ufe16\ufe17\ufe18\ufe19"),
    ("gb18030", bytes.fromhex("fe59fe61fe66fe67fe6dfe7efe90fea0"), "".join(map(chr, range(0x9FB4, 0x9FBC)))),
    ("ks_c_5601-1987", b"\x8c\x63\xb0\xa1", "똠가"),  # Windows-949
    ("shift_jis", b"\x87\x40\x81\x60", "①～"),  # Windows-31J
    ("x-euc-jp", b"\xad\xa1\xa4\xa2\xf9\xa1", "①あ纊"),
    ("big5-hkscs", b"\x88\x62\xa4\xa4", "Ê̄中"),
    ("koi8-ru", b"\xae\xbe\xa4", "ўЎє"),
    ("unicode-1-1-utf-8", "نص".encode(), "نص"),
    ("utf-16", "نص".encode("utf-16-le"), "نص"),
    ("x-mac-cyrillic", b"\x80\xff", "А€"),
]


@pytest.mark.parametrize(("label", "content", "text"), STANDARD)
def test_labels_mean_what_the_standard_says(label, content, text):
    assert decoded_page(b"<p>" + content if label != "utf-16" else content, declared=label).removeprefix("<p>") == text


PAGE = "<meta charset='%s'><p>مرحبا"


@pytest.mark.parametrize(
    ("content", "declared"),
    [
        (b"\xff\xfe" + (PAGE % "latin1").encode("utf-16-le"), "iso-8859-1"),  # the mark goes before all labels
        (b"\xef\xbb\xbf" + (PAGE % "latin1").encode(), "windows-1252"),
        ((PAGE % "windows-1256").encode("cp1256"), ""),
        ((PAGE % "windows-1256").encode("cp1256"), "utf-8"),  # does not fit
        ((PAGE % "utf-16le").encode(), ""),  # written in ASCII, so that it cannot be true
        ('<?xml version="1.0" encoding="windows-1256"?><p>مرحبا'.encode("cp1256"), ""),
        ((PAGE % "x-unknown").encode(), "none-such"),
        ((PAGE % "utf-8").encode() + "م".encode()[:1], ""),  # cut inside a character
    ],
)
def test_the_encoding_of_a_page(content, declared):
    assert decoded_page(content, declared=declared).endswith("<p>مرحبا")


@pytest.mark.parametrize(
    "label", ["idna", "punycode", "undefined", "zlib", "rot13", "unicode_escape", "a\0b", "é", "x" * 5000]
)
def test_hostile_labels_are_unknown(label):
    assert decoded_page("<p>مرحبا".encode(), declared=label) == "<p>مرحبا"
    with pytest.raises(BadContent, match="^with an unknown character set$"):
        decoded_page(b"<p>\xff\xfe\xff", declared=label)


@pytest.mark.parametrize(
    ("content", "declared", "reason"),
    [
        (b"<p>\xff\xff", "", "with invalid UTF-8"),
        (b"<p>\xff\xff", "utf-8", "with invalid UTF-8"),
        (b"<p>\xff\xff", "euc-kr", "not in the character set that it names"),
        (b"<p>\xa0<", "shift_jis", "not in the character set that it names"),
        (b"<p>\xfd<", "shift_jis", "not in the character set that it names"),
        (b"<p>\xfe<", "shift_jis", "not in the character set that it names"),
        ("<p>نص".encode("utf-16-le"), "windows-1252", "with NUL characters"),
        (b"~{<:Ky2;S{#,~}\xff", "hz-gb-2312", "not in the character set that it names"),
    ],
)
def test_the_reason_is_the_true_one(content, declared, reason):
    with pytest.raises(BadContent, match=f"^{reason}"):
        decoded_page(content, declared=declared)


def raw_deflate(content):
    compressor = zlib.compressobj(wbits=-15)
    return compressor.compress(content) + compressor.flush()


CONTENT = b"<html>" + b"text " * 1000


def test_content_encodings():
    encoded = {"gzip": gzip.compress, "x-gzip": gzip.compress, "deflate": zlib.compress, "zstd": zstandard.compress}
    for name, compress in encoded.items():
        assert decoded_content(compress(CONTENT), encodings=name, limit=10_000) == CONTENT
        assert decoded_content(CONTENT, encodings=name, limit=10_000) == CONTENT  # stored decoded
        with pytest.raises(BadContent, match="longer than max_record_bytes"):
            decoded_content(compress(CONTENT), encodings=name, limit=1000)
        with pytest.raises(BadContent, match="broken content encoding"):
            decoded_content(b"\x01\x02\x03nonsense", encodings=name, limit=1000)
    assert decoded_content(raw_deflate(CONTENT), encodings="Deflate", limit=10_000) == CONTENT
    twice = gzip.compress(zlib.compress(CONTENT))
    assert decoded_content(twice, encodings="deflate, identity, gzip", limit=10_000) == CONTENT
    with pytest.raises(BadContent, match="^with an unknown content encoding$"):
        decoded_content(CONTENT, encodings="sdch", limit=10_000)


def test_content_in_several_members_and_cut_content():
    members = gzip.compress(CONTENT[:300]) + gzip.compress(CONTENT[300:])
    assert decoded_content(members, encodings="gzip", limit=10_000) == CONTENT
    frames = zstandard.compress(CONTENT[:300]) + zstandard.compress(CONTENT[300:])
    assert decoded_content(frames, encodings="zstd", limit=10_000) == CONTENT
    encoded = {"gzip": gzip.compress(CONTENT), "deflate": zlib.compress(CONTENT), "zstd": zstandard.compress(CONTENT)}
    if brotli := sys.modules.get("brotli") or pytest.importorskip("brotli"):
        encoded["br"] = brotli.compress(CONTENT)
    for name, content in {"deflate ": raw_deflate(CONTENT), **encoded, "gzip ": members, "zstd ": frames}.items():
        for kept in (1, len(content) // 2, len(content) - 1):
            with pytest.raises(BadContent, match="broken content encoding"):
                decoded_content(content[:kept], encodings=name, limit=10_000)


def test_chunks():
    chunks = b"5;a=b\r\n<html\r\n6\r\n>text \r\n0\r\nX: y\r\n\r\n"
    assert without_chunks(chunks) == b"<html>text "
    assert without_chunks(CONTENT) == CONTENT
    for cut in (chunks[:10], chunks[:13], chunks[:20], chunks[:24], chunks.replace(b"6\r", b"9\r")):
        with pytest.raises(BadContent, match="^with broken chunks$"):
            without_chunks(cut)


def test_brotli():
    brotli = pytest.importorskip("brotli")
    assert decoded_content(brotli.compress(CONTENT), encodings="br", limit=10_000) == CONTENT
    with pytest.raises(BadContent, match="longer than max_record_bytes"):
        decoded_content(brotli.compress(CONTENT), encodings="br", limit=1000)
    with pytest.raises(BadContent, match="broken content encoding"):
        decoded_content(b"nonsense", encodings="br", limit=1000)


def test_brotli_that_is_not_installed_is_the_reason(monkeypatch):
    monkeypatch.setitem(sys.modules, "brotli", None)
    with pytest.raises(BadContent, match="^compressed with Brotli; pip install -U brotli$"):
        decoded_content(b"x", encodings="br", limit=1000)
