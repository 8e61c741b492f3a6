"""WARC and WET written by warcio, CSV written by Python's csv."""

import csv
import gzip
import io
import time

import pytest

from allam_jax.corpus.readers import FileReader
from allam_jax.corpus.settings import DocumentsSettings
from allam_jax.errors import UserError

SENTENCES = "هذه صفحة عن تاريخ المدينة القديمة وأسواقها. بناها أهلها قبل ألف سنة على ضفة النهر. "
TEXT = SENTENCES * 4
PAGE = "<html><head>{meta}<title>t</title></head><body><nav>menu</nav><article><p>{text}</p></article></body></html>"


def read(path, **options):
    reader = FileReader(
        DocumentsSettings(path=str(path), language="ar", **{"max_bad_share": 0.0} | options),
        source="s",
        fields=("url", "date"),
    )
    return reader, list(reader)


@pytest.fixture
def write_warc(tmp_path):
    warcio = pytest.importorskip("warcio.warcwriter")
    from warcio.statusandheaders import StatusAndHeaders

    def write(name, records):
        buffer = io.BytesIO()
        writer = warcio.WARCWriter(buffer, gzip=name.endswith(".gz"))
        writer.write_record(writer.create_warcinfo_record("x", {"software": "test"}))
        for number, (kind, status, content_type, content) in enumerate(records):
            http = None
            if kind == "response":
                http = StatusAndHeaders(status, [("Content-Type", content_type)], protocol="HTTP/1.0")
            writer.write_record(
                writer.create_warc_record(
                    f"https://a.example/{number}",
                    kind,
                    payload=io.BytesIO(content),
                    http_headers=http,
                    warc_headers_dict={"WARC-Date": "2024-05-06T07:08:09Z"},
                    warc_content_type="text/plain" if kind == "conversion" else "application/http; msgtype=response",
                )
            )
        (tmp_path / name).write_bytes(buffer.getvalue())
        return tmp_path / name

    return write


@pytest.mark.parametrize("name", ["a.warc", "a.warc.gz"])
def test_pages(write_warc, name):
    pytest.importorskip("trafilatura")
    arabic = "<meta charset='windows-1256'>"
    path = write_warc(
        name,
        [
            ("response", "200 OK", "text/html; charset=utf-8", PAGE.format(meta="", text=TEXT).encode()),
            ("response", "200 OK", "text/html", PAGE.format(meta=arabic, text=TEXT).encode("cp1256")),
            ("request", "", "", b"GET / HTTP/1.0"),
            ("response", "404 Not Found", "text/html", b"<html>no</html>"),
            ("response", "200 OK", "image/png", b"\x89PNG"),
            ("response", "200 OK", "text/html", b"<html>\xff\xfe\xff</html>"),
            ("response", "200 OK", "text/html", b"<html><body></body></html>"),
        ],
    )
    reader, documents = read(path, max_bad_share=0.9)
    assert [document.text.strip() for document in documents] == [TEXT.strip()] * 2
    assert documents[1].metadata == {"url": "https://a.example/1", "date": "2024-05-06T07:08:09Z"}
    assert documents[0].id.startswith("<urn:uuid:")
    counts = reader.counts[path]
    assert counts.other == {"status 404": 1, "of type image/png": 1}
    assert counts.bad == {"with invalid UTF-8": 1, "a page without text": 1}


def test_wet(write_warc):
    path = write_warc("a.wet.gz", [("conversion", "", "", TEXT.encode()), ("conversion", "", "", b"\xff\xff")])
    reader, documents = read(path, max_bad_share=0.9)
    assert [document.text for document in documents] == [TEXT]
    assert reader.counts[path].bad == {"with invalid UTF-8": 1}


@pytest.mark.parametrize("name", ["a.wet", "a.wet.gz"])
@pytest.mark.parametrize("share", [0.5, 0.97])
def test_an_archive_that_is_cut_off_is_damaged(write_warc, name, share):
    path = write_warc(name, [("conversion", "", "", f"{number} {TEXT}".encode()) for number in range(50)])
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(UserError, match="a.wet.*(damaged|no web archive).*fetch it again"):
        read(path)


def test_what_is_no_archive(tmp_path):
    path = tmp_path / "a.wet"
    path.write_bytes(b"nothing of the kind\n" * 20)
    with pytest.raises(UserError, match="a.wet: .*no web archive.*fetch it again"):
        read(path)


def test_csv(tmp_path):
    rows = [["id", "text", "url"], ["1", 'with "quotes", commas\nand lines', "https://a.example"], ["2", "ثان", ""]]
    path = tmp_path / "a.csv"
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    _, documents = read(path)
    assert [(document.id, document.text) for document in documents] == [(row[0], row[1]) for row in rows[1:]]
    assert documents[0].metadata["url"] == "https://a.example"


def test_bad_csv(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(b"id,text\n1,one\n2,two,three\n3,\xff\n\n4,four\n")
    reader, documents = read(path, max_bad_share=0.5)
    assert [document.text for document in documents] == ["one", "four"]
    assert reader.counts[path].bad == {"with another number of values than columns": 1, "with invalid UTF-8": 1}
    path.write_bytes(b"id,body\n1,one\n")
    with pytest.raises(UserError, match="a.csv: no column 'text'; it has id, body"):
        read(path)
    path.write_bytes(b"")
    with pytest.raises(UserError, match="no documents"):
        read(path)


def test_csv_with_broken_quotes(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('id,text\n1,"one"\n2,"two" more\n3,5" disk\n4,a\rb\n5,"five"\n')
    reader, documents = read(path, max_bad_share=0.5)
    assert [document.text for document in documents] == ["one", '5" disk', "five"]
    assert reader.counts[path].bad["with broken quoting"] == 1
    assert reader.counts[path].bad.total() == 2
    path.write_text('id,text\n1,one\n2,"open\n' + "".join(f"{n},more\n" for n in range(3, 300)))
    with pytest.raises(UserError, match="a.csv: damaged or cut short .it ends inside a quoted value.; repair it"):
        read(path)
    with pytest.raises(UserError, match="a.csv: a quoted value is still open after 1000 bytes; close its quote"):
        read(path, max_record_bytes=1000)
    path.write_text('id,"te"xt\n1,one\n')
    with pytest.raises(UserError, match="a.csv: the first line is no line of CSV"):
        read(path)


def test_tsv(tmp_path):
    (tmp_path / "a.TSV").write_text('id\ttext\n1\tone, two\n2\t"three\nfour"\n')
    assert [document.text for document in read(tmp_path)[1]] == ["one, two", "three\nfour"]


def warc_record(kind, content, **headers):
    lines = {"WARC-Type": kind, "WARC-Record-ID": "<urn:x>", "WARC-Date": "2024-05-06T07:08:09Z"}
    lines |= {"Content-Length": len(content)} | {name.replace("_", "-"): value for name, value in headers.items()}
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return f"WARC/1.0\r\n{head}\r\n".encode() + content + b"\r\n\r\n"


def page(*headers, content=None):
    body = PAGE.format(meta="", text=TEXT).encode() if content is None else content
    lines = ["HTTP/1.1 200 OK", "Content-Type: text/html", *headers]
    content = "\r\n".join([*lines, "", ""]).encode() + body
    return warc_record("response", content, WARC_Target_URI="https://a.example")


def test_one_bad_page_never_stops_an_archive(tmp_path):
    """Every page that cannot be read is followed by pages that can."""
    pytest.importorskip("trafilatura")
    broken = {
        "with an unknown content encoding": page("Content-Encoding: sdch"),
        "with broken content encoding": page("Content-Encoding: gzip", content=b"\x01\x02"),
        "longer than max_record_bytes": page(content=b"x" * 300_000),
        "a page of more than 50000 tags": page(content=b"<p" * 50_001),
        "with invalid UTF-8": page(content=b"<p>\xff\xff"),
        "with an unknown character set": page("content-type: text/html; charset=nothing", content=b"<p>\xff\xff"),
        "status unknown": warc_record("response", b"nonsense\r\n\r\n<p>", WARC_Target_URI="http://a.example"),
        "of type unknown": warc_record("response", b"no address, no header"),
    }
    broken["with an unknown character set"] = page(content=b"<meta charset=nothing><p>\xff\xff")
    chunked = b"5\r\n<p>\xd9\x85\r\n0\r\n\r\n"
    good = page() + page("Transfer-Encoding: chunked", content=chunked)
    path = tmp_path / "a.warc"
    path.write_bytes(b"".join(record + good for record in broken.values()))
    reader, documents = read(path, max_bad_share=0.9, max_record_bytes=200_000)
    assert sum(document.text.strip() == TEXT.strip() for document in documents) == len(broken)
    counts = reader.counts[path]
    assert {**counts.bad, **counts.other}.keys() - {"a page without text"} == broken.keys()


def test_a_header_without_end_is_no_archive(tmp_path):
    path = tmp_path / "a.wet"
    path.write_bytes(page()[:60] + b"X: " + b"x" * 3_000_000)
    with pytest.raises(UserError, match="a header of more than 1048576 bytes"):
        read(path)


WET = [f"document {number}: {SENTENCES}".encode() for number in range(4)]


def wet(*, wrong=None, length=None):
    """Records of WET, one of which has a wrong length."""
    return [
        warc_record("conversion", text, **({"Content-Length": length} if number == wrong else {}))
        for number, text in enumerate(WET)
    ]


def written(records, form):
    """The same records as they are, with other line ends, and compressed in some ways."""
    if form == "more line ends":
        return b"".join(record + b"\r\n" * (number % 5) for number, record in enumerate(records, start=1))
    if form == "a last member of line ends":
        return b"".join(map(gzip.compress, [*records, b"\r\n"]))
    if form == "members of line ends":
        return b"".join(gzip.compress(record) + gzip.compress(b"\r\n") for record in records)
    if form == "record by record":
        return b"".join(map(gzip.compress, records))
    content = b"".join(records)
    if form == "whole":
        return gzip.compress(content)
    if form == "blocks":  # bgzip
        return b"".join(gzip.compress(content[i : i + 100]) for i in range(0, len(content), 100))
    return content.replace(b"\r\n", b"\n") if form == "line feeds" else content


FORMS = {"plain": "a.wet", "line feeds": "a.wet"} | dict.fromkeys(("record by record", "whole", "blocks"), "a.wet.gz")
SIZE, RECORD = len(WET[1]), len(wet()[2])


SPACED = {"more line ends": "a.wet"} | dict.fromkeys(("a last member of line ends", "members of line ends"), "a.wet.gz")


@pytest.mark.parametrize("form", [*FORMS, *SPACED])
def test_archives_in_all_forms(tmp_path, form):
    text = b"a text about\r\n\r\nWARC/1.0\r\nWARC-Type: conversion\r\nContent-Length: 3\r\n\r\nfoo"
    quoted = warc_record("conversion", text)
    path = tmp_path / (FORMS | SPACED)[form]
    path.write_bytes(written([*wet(), *([quoted] if form != "line feeds" else [])], form))
    texts = [document.text.encode() for document in read(path)[1]]
    assert texts == WET + ([text] if form != "line feeds" else [])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("wrong", [0, 1, 3])
@pytest.mark.parametrize(
    "length",
    [
        *(SIZE + number for number in (-SIZE, -100, -4, -3, -2, -1, 1, 2, 3, 4, 5, 30, RECORD, RECORD + 100)),
        *(SIZE + 4 + RECORD - 4, SIZE + 2 * RECORD, -5, "abc", "", "1e3", "+5", 10**30),
    ],
)
def test_a_wrong_length_costs_its_record_only(tmp_path, form, wrong, length):
    """The text of a record is what was written, or the record is counted as bad; the others are read."""
    path = tmp_path / FORMS[form]
    path.write_bytes(written(wet(wrong=wrong, length=length), form))
    reader, documents = read(path, max_bad_share=1.0, max_damaged_share=1.0)
    counts = reader.counts[path]
    # Of the last record nobody can say whether the file was cut instead.
    assert counts.bad == {"with a wrong Content-Length": 1} or (wrong == 3 and counts.damage and not counts.bad)
    assert [document.text.encode() for document in documents] == WET[:wrong] + WET[wrong + 1 :]


@pytest.mark.parametrize("form", FORMS)
def test_a_length_beyond_all_is_damage(tmp_path, form):
    path = tmp_path / FORMS[form]
    path.write_bytes(written(wet(wrong=1, length=10**15), form))
    reader, documents = read(path, max_bad_share=1.0, max_damaged_share=1.0)
    texts = [document.text.encode() for document in documents]
    if form == "record by record":
        assert (texts, reader.counts[path].bad) == ([WET[0], *WET[2:]], {"with a wrong Content-Length": 1})
    else:
        assert texts == WET[:1]
        assert reader.counts[path].damage


def test_no_damaged_byte_of_a_length_gives_a_wrong_text(tmp_path, capfd):
    content = b"".join(wet())
    start = content.index(b"Content-Length")
    for position in range(start, content.index(b"\r\n\r\n", start) + 4):
        for bit in range(8):
            (tmp_path / "a.wet").write_bytes(
                content[:position] + bytes([content[position] ^ (1 << bit)]) + content[position + 1 :]
            )
            _, documents = read(tmp_path / "a.wet", max_bad_share=1.0, max_damaged_share=1.0)
            assert {document.text.encode() for document in documents} <= set(WET)
    assert capfd.readouterr() == ("", "")


def test_records_of_all_types_are_read_or_counted(tmp_path):
    pytest.importorskip("trafilatura")
    body = PAGE.format(meta="", text=TEXT).encode()
    packed = gzip.compress(body)
    address = {"WARC_Target_URI": "<https://a.example>"}
    records = [
        warc_record("warcinfo", b"software: test"),
        warc_record("request", b"GET / HTTP/1.1\r\n\r\n", **address),
        warc_record("metadata", b"a: b", **address),
        warc_record("resource", body, Content_Type="text/html; charset=utf-8", **address),
        warc_record("resource", b"a: b", Content_Type="text/dns", **address),
        warc_record("revisit", b"HTTP/1.1 200 OK\r\n\r\n", **address),
        warc_record("continuation", body, WARC_Segment_Number=2, **address),
        warc_record("response", b"HTTP/1.1 200 OK\r\n\r\n" + body, WARC_Segment_Number=1, **address),
        warc_record("x-own", body, **address),
        page("Content-Encoding: gzip", content=gzip.compress(body[:200]) + gzip.compress(body[200:])),
        page("Content-Encoding: gzip", content=packed[:-20]),
        page("Content-Encoding: gzip", content=packed[: len(packed) // 2]),
        page("Transfer-Encoding: chunked", content=b"ffff\r\n" + body),
    ]
    (tmp_path / "a.warc").write_bytes(b"".join(records))
    reader, documents = read(tmp_path / "a.warc", max_bad_share=0.9)
    assert [document.text.strip() for document in documents] == [TEXT.strip()] * 2
    assert documents[0].metadata["url"] == "https://a.example"
    counts = reader.counts[tmp_path / "a.warc"]
    assert counts.bad == {"with broken content encoding": 2, "with broken chunks": 1}
    assert counts.other == {
        "of type text/dns": 1,
        "of type revisit": 1,
        "a part of a record that was cut in segments": 2,
        "of an unknown WARC-Type": 1,
    }


def test_marks_spelled_as_entities_take_no_time(tmp_path):
    pytest.importorskip("trafilatura")
    path = tmp_path / "a.warc"
    path.write_bytes(page(content=PAGE.format(meta="", text=TEXT + "a" + "&#x301;&#x316;" * 50_000).encode()))
    start = time.process_time()
    (document,) = read(path)[1]
    assert time.process_time() - start < 5
    assert document.text.count("\u0316") == 50_000
