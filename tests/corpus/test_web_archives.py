"""WARC and WET written by warcio, CSV written by Python's csv."""

import csv
import io

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
    pytest.importorskip("warcio")
    path = tmp_path / "a.warc"
    path.write_bytes(b"nothing of the kind\n" * 20)
    with pytest.raises(UserError, match="a.warc: .*no web archive.*fetch it again"):
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
    lines = {"WARC-Type": kind, "WARC-Record-ID": "<urn:x>", "Content-Length": len(content)} | headers
    head = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in lines.items())
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
    pytest.importorskip("warcio")
    path = tmp_path / "a.warc"
    path.write_bytes(page()[:60] + b"X: " + b"x" * 3_000_000)
    with pytest.raises(UserError, match="a header of more than 1048576 bytes"):
        read(path)
