import datetime
import decimal
import gzip
import json
import tracemalloc

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from read_files import JSONL, TEXTS, compress, read

from allam_jax.corpus.readers import FileReader
from allam_jax.corpus.settings import DocumentsSettings
from allam_jax.errors import UserError


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst", ".bz2", ".xz"])
def test_jsonl(tmp_path, suffix):
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(compress(JSONL, suffix))
    _, documents = read(path)
    assert [(document.text, document.id) for document in documents] == [(t, str(i)) for i, t in enumerate(TEXTS)]
    assert {(document.source, document.language) for document in documents} == {("s", "ar")}


@pytest.mark.parametrize(
    ("unit", "expected"),
    [
        ("line", ["one", "two", "three"]),
        ("paragraph", ["one\ntwo", "three"]),
        ("file", ["one\ntwo\n\nthree"]),
    ],
)
@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_text(tmp_path, unit, expected, suffix):
    path = tmp_path / f"a.txt{suffix}"
    path.write_bytes(compress(b"one\ntwo\n\nthree\n", suffix))
    _, documents = read(path, text_unit=unit)
    assert [document.text.rstrip("\n") for document in documents] == expected


@pytest.mark.parametrize(("unit", "expected"), [("line", ["a", "b", "c"]), ("paragraph", ["a\nb", "c"])])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_line_ends_of_all_systems(tmp_path, unit, expected, end, mark):
    (tmp_path / "a.txt").write_bytes(f"{mark}a\nb\n\nc\n".replace("\n", end).encode())
    assert [document.text for document in read(tmp_path / "a.txt", text_unit=unit)[1]] == expected


def test_line_ends_across_blocks(tmp_path):
    lines = ["x" * (7 * number % 97 + 1) for number in range(60_000)]  # three blocks
    for end in ("\r\n", "\r"):
        (tmp_path / "a.txt").write_bytes(end.join(lines).encode())
        assert [document.text for document in read(tmp_path / "a.txt")[1]] == lines


def test_parquet(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"body": TEXTS, "id": [6, 7, 8, 9], "other": [1.0] * 4}), path, row_group_size=2)
    _, documents = read(path, text_field="body")
    assert [(document.text, document.id) for document in documents] == list(zip(TEXTS, "6789", strict=True))
    with pytest.raises(UserError, match="no column 'text'; it has body, id, other"):
        read(path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match="a.parquet: damaged or not Parquet"):
        read(path, text_field="body")


def bad_file(path):
    records = [b'{"text": "good"}'] * 92
    records += [b'{"text": "\xff\xfe"}', b'{"text": ', b"[1]", b'{"body": "x"}', b'{"text": " "}', b'{"text": 3}']
    records += [rb'{"text": "half of a pair: \ud83d"}', b'{"text": "a", "id": ' + b"9" * 5000 + b"}"]
    path.write_bytes(b"\n".join(records))
    return path


def test_bad_records_are_counted_by_reason(tmp_path):
    reader, documents = read(bad_file(tmp_path / "a.jsonl"), max_bad_share=0.08)
    (counts,) = reader.counts.values()
    assert counts.documents == len(documents) == 92
    assert counts.bad == {
        "with invalid UTF-8": 1,
        "with invalid Unicode": 1,
        "not JSON": 2,
        "not a JSON object": 1,
        "without field 'text'": 1,
        "empty": 1,
        "with field 'text' not a string": 1,
    }


def test_too_many_bad_records_stop_the_run(tmp_path):
    with pytest.raises(
        UserError, match=r"a.jsonl: too many bad records \(92 good, 1 empty, .* 1 with invalid UTF-8"
    ) as e:
        read(bad_file(tmp_path / "a.jsonl"), max_bad_share=0.07)
    assert "\n" not in str(e.value)


def test_bad_records_stop_a_long_file_early(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b"nonsense\n" * 50_000)
    with pytest.raises(UserError, match="10000 not JSON"):
        read(tmp_path / "a.jsonl", max_bad_share=0.5)


def test_parquet_nulls_are_bad_records(tmp_path):
    pq.write_table(pa.table({"text": ["a", None]}), tmp_path / "a.parquet")
    reader, _ = read(tmp_path, max_bad_share=0.5)
    assert reader.counts[tmp_path / "a.parquet"].bad == {"without field 'text'": 1}


def test_parquet_with_invalid_utf8(tmp_path):
    values = [b"good", b"\xff\xfe", "نص".encode()]
    text = pa.Array.from_buffers(pa.string(), 3, pa.array(values, pa.binary()).buffers())
    pq.write_table(pa.table({"text": text}), tmp_path / "a.parquet")
    reader, documents = read(tmp_path, max_bad_share=0.5)
    assert [document.text for document in documents] == ["good", "نص"]
    assert reader.counts[tmp_path / "a.parquet"].bad == {"with invalid UTF-8": 1}


def test_directories_and_globs_give_each_file_once(tmp_path):
    for name in ("b/x.txt", "a/x.txt", "a/notes.md", "c.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text('{"text": "j"}' if name.endswith("jsonl") else name)
    everything = [("a/x.txt", "a/x.txt:1"), ("b/x.txt", "b/x.txt:1"), ("j", "c.jsonl:1")]
    for paths in (tmp_path, f"{tmp_path}/**/*.[tj]*", f"{tmp_path}/**/**/*.[tj]*"):
        assert [(document.text, document.id) for document in read(paths)[1]] == everything


def test_paths_that_do_not_exist(tmp_path):
    (tmp_path / "arabic").mkdir()
    (tmp_path / "arabic" / "news.jsonl").write_text("")
    with pytest.raises(UserError, match=r"nws.jsonl: no such file or directory; did you mean .*arabic/news.jsonl\?"):
        read(tmp_path / "arabic" / "nws.jsonl")
    with pytest.raises(UserError, match=r"did you mean .*/arabic\?"):
        read(tmp_path / "arabc" / "news.jsonl")
    with pytest.raises(UserError, match="no file matches this pattern"):
        read(tmp_path / "*.txt")
    (tmp_path / "a.doc").write_text("x")
    with pytest.raises(UserError, match=r"a.doc: cannot read it \(.*of another kind \(.doc\)\); expected .jsonl"):
        read(tmp_path / "a.doc")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no files to read in this directory"):
        read(tmp_path / "empty")


def test_an_empty_corpus_is_an_error(tmp_path):
    (tmp_path / "a.jsonl").write_text("\n\n")
    with pytest.raises(UserError, match="no documents in .*a.jsonl; the corpus is empty .the files are empty.$"):
        read(tmp_path)
    (tmp_path / "a.jsonl").write_text('{\n{\n{"text": " "}\n')
    (tmp_path / "b.jsonl.gz").write_bytes(b"x")
    with pytest.raises(UserError, match="empty .2 not JSON, 1 empty, 1 files that are damaged or cut short"):
        read(tmp_path, max_bad_share=1.0, max_damaged_share=1.0)


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be", "utf-8"])
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_a_byte_order_mark_says_the_encoding(tmp_path, encoding, suffix):
    texts = ["مرحبا 𝄞", "second"] * 60_000  # more than a block, with characters across its ends
    lines = "\ufeff" + "\r\n".join(texts)
    (tmp_path / f"a.txt{suffix}").write_bytes(compress(lines.encode(encoding), suffix))
    assert [document.text for document in read(tmp_path)[1]] == texts
    (tmp_path / f"a.txt{suffix}").unlink()
    rows = '\ufefftext,url\n"one\nline",https://a.example\n'
    (tmp_path / f"a.csv{suffix}").write_bytes(compress(rows.encode(encoding), suffix))
    assert [document.text for document in read(tmp_path)[1]] == ["one\nline"]


def test_utf_16_that_ends_inside_a_character_is_damaged(tmp_path):
    (tmp_path / "a.txt").write_bytes("\ufeffone\ntwo".encode("utf-16-le")[:-1])
    with pytest.raises(UserError, match="a.txt: damaged or cut short .*truncated data"):
        read(tmp_path)


WITHOUT_SPACES = {
    "a.txt": "السلام\nعليكم",
    "b.txt": "你好世界\n再见",
    "c.jsonl": '{"text": "你好世界"}',
    "d.csv": "text\nنص\n",
}


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf_16_without_a_mark_is_refused(tmp_path, encoding):
    for name, content in WITHOUT_SPACES.items():
        path = tmp_path / name
        path.write_bytes(content.encode(encoding))
        with pytest.raises(UserError, match=f"{name}: {encoding.upper()} without a byte order mark; convert it to UTF"):
            read(path, max_bad_share=1.0)


def test_one_line_of_utf_16_and_nuls_are_bad_records(tmp_path):
    for name, content in (
        ("a.txt", "السلام".encode("utf-16-le")),
        ("b.txt", "你好世界".encode("utf-16-be")),
        ("c.jsonl", json.dumps({"text": "a\0b"}).encode()),
        ("d.csv", b"text\na\0b\n"),
        ("e.jsonl", b'{"text": "a", "id": "b\\u0000"}'),
        ("f.jsonl", b'{"text": "a", "url": "b\\u0000"}'),
    ):
        (tmp_path / name).write_bytes(content)
    (tmp_path / "g.txt").write_text("good \x0c\n one control character \x02 is no harm, and colours \x1b[31mare none\n")
    reader, documents = read(tmp_path, max_bad_share=1.0, fields=("url",))
    assert [document.id for document in documents] == ["g.txt:1", "g.txt:2"]
    for counts in list(reader.counts.values())[:6]:
        (reason,) = counts.bad
        assert reason.endswith("control characters, as in UTF-16 without a byte order mark") or "with NUL" in reason


@pytest.mark.parametrize("unit", ["line", "paragraph", "file"])
@pytest.mark.parametrize("length", [999, 1000, 1001, 5000])
def test_records_of_all_lengths_around_the_limit(tmp_path, unit, length):
    text = "x" * length
    for name, content in (
        ("a.txt", f"first\n\n{text}\n\nlast" if unit != "file" else text),
        ("b.jsonl", "\n".join(f'{{"text":"{row}"}}' for row in ("first", "x" * (length - 11), "last"))),
        ("c.csv", f"text\nfirst\n{text}\nlast\n"),
    ):
        (tmp_path / name).write_text(content)
    reader, documents = read(tmp_path, text_unit=unit, max_bad_share=1.0, max_record_bytes=1000)
    expected = {"longer than max_record_bytes": 1} if length > 1000 else {}
    assert [dict(counts.bad) for counts in reader.counts.values()] == [expected] * 3
    assert sum(document.text in ("first", "last") for document in documents) == (4 if unit == "file" else 6)


def test_a_line_without_end_takes_bounded_memory(tmp_path):
    with gzip.open(tmp_path / "a.jsonl.gz", "wb", 1) as file:
        file.write(b'{"text": "')
        for _ in range(100):
            file.write(b"x" * 1_000_000)
        file.write(b'"}\n{"text": "good"}\n')
    tracemalloc.start()
    reader, documents = read(tmp_path, max_bad_share=0.5, max_record_bytes=4_000_000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [document.text for document in documents] == ["good"]
    assert reader.counts[tmp_path / "a.jsonl.gz"].bad == {"longer than max_record_bytes": 1}
    assert peak < 12_000_000


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ({"url": "https://a.example/\ud800"}, "with invalid Unicode"),
        ({"tags": {"a": ["\udfff"]}}, "with invalid Unicode"),
        ({"date": "\ud83d"}, "with invalid Unicode"),
        ({"url": 3, "tags": [None, 1e400]}, ""),
    ],
)
def test_half_of_a_surrogate_pair_in_any_field(tmp_path, value, reason):
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "good"} | value) + '\n{"text": "other"}\n')
    reader, documents = read(tmp_path, fields=("url", "date", "tags"), max_bad_share=0.5)
    assert reader.counts[tmp_path / "a.jsonl"].bad == ({reason: 1} if reason else {})
    assert len(documents) == (1 if reason else 2)


def test_a_file_whose_name_is_not_utf_8(tmp_path):
    (tmp_path / b"caf\xe9.txt".decode("utf-8", "surrogateescape")).write_text("good")
    assert [document.id for document in read(tmp_path)[1]] == ["caf\\xe9.txt:1"]


PARIS = datetime.timezone(datetime.timedelta(hours=2))
NOON = datetime.datetime(2024, 5, 1, 12, 30, tzinfo=datetime.UTC)
NANOSECONDS = int(NOON.timestamp()) * 10**9 + 123_456_789


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (pa.array([NOON.replace(tzinfo=None)], pa.timestamp("s")), "2024-05-01T12:30:00"),
        (pa.array([NOON], pa.timestamp("ms", "Asia/Riyadh")), "2024-05-01T12:30:00+00:00"),
        (pa.array([NANOSECONDS], pa.timestamp("ns")), "2024-05-01T12:30:00.123456"),
        (pa.array([NANOSECONDS], pa.timestamp("ns", "+02:00")), "2024-05-01T12:30:00.123456+00:00"),
        (pa.array([NOON.date()], pa.date32()), "2024-05-01"),
        (pa.array([NOON.date()], pa.date64()), "2024-05-01"),
        (pa.array([datetime.time(1, 2, 3)], pa.time64("ns")), "01:02:03"),
        (pa.array([90_500_000_001], pa.duration("ns")), "PT90.5S"),
        (pa.array([-(10**9) - 1], pa.duration("ms")), "PT-1000000.001S"),
        (pa.array([decimal.Decimal("1.50")]), "1.50"),
        (pa.array(["2024-05-01"]).dictionary_encode(), "2024-05-01"),
        (pa.array(["2024-05-01"], pa.large_string()), "2024-05-01"),
        (pa.array(["2024-05-01"], pa.string_view()), "2024-05-01"),
        (pa.array([b"2024-05-01"], pa.binary()), "2024-05-01"),
        (pa.array([[NOON.date()]], pa.list_(pa.date32())), ["2024-05-01"]),
        (pa.array([{"a": NOON}], pa.struct([("a", pa.timestamp("us", "UTC"))])), {"a": "2024-05-01T12:30:00+00:00"}),
        (pa.array([7], pa.int64()), 7),
        (pa.array([10**9], pa.date32()), "date out of range"),  # the year 2,739,877
        (pa.array([2**60], pa.timestamp("us", "UTC")), "date out of range"),
        (pa.array([b"\xff"], pa.binary()), "date with invalid UTF-8"),
    ],
    ids=lambda value: str(value.type) if isinstance(value, pa.Array) else "",
)
def test_typed_columns_of_parquet(tmp_path, array, expected):
    pq.write_table(pa.table({"text": ["good"], "date": array}), tmp_path / "a.parquet")
    reader, (document,) = read(tmp_path, fields=("date", "date"))  # once for a rule and once as a feature
    (counts,) = reader.counts.values()
    if isinstance(expected, str) and expected.startswith("date "):
        assert (document.metadata, counts.unread) == ({}, {expected: 1})
    else:
        assert (document.metadata, counts.unread) == ({"date": expected}, {})


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.binary(), pa.string_view()])
def test_texts_of_all_string_types_and_large_ones(tmp_path, kind):
    texts = ["one", "x" * 2000, None, "مرحبا"]
    column = pa.array([t and (t.encode() if kind == pa.binary() else t) for t in texts], kind)
    pq.write_table(pa.table({"text": column}), tmp_path / "a.parquet")
    reader, documents = read(tmp_path, max_bad_share=0.9, max_record_bytes=1000)
    assert [document.text for document in documents] == ["one", "مرحبا"]
    (counts,) = reader.counts.values()
    assert counts.bad == {"longer than max_record_bytes": 1, "without field 'text'": 1}


@pytest.mark.parametrize("column", [pa.array(["x" * 100, "y"] * 2).dictionary_encode(), pa.array(["x" * 100, "y"] * 2)])
def test_the_limit_holds_in_dictionaries_too(tmp_path, column):
    pq.write_table(pa.table({"text": column}), tmp_path / "a.parquet")
    reader, documents = read(tmp_path, max_bad_share=0.9, max_record_bytes=10)
    assert [document.text for document in documents] == ["y", "y"]
    assert reader.counts[tmp_path / "a.parquet"].bad == {"longer than max_record_bytes": 2}


def test_an_id_that_is_missing_is_the_number_of_the_record(tmp_path):
    nan = float("nan")
    for name, ids in (("a", [1.0, nan, nan]), ("b", ["", "x", None]), ("c", [nan, None, 2.0])):
        pq.write_table(pa.table({"text": ["1", "2", "3"], "id": ids}), tmp_path / f"{name}.parquet")
    ids = [document.id for document in read(tmp_path)[1]]
    assert ids == ["1.0", "a.parquet:2", "a.parquet:3", "b.parquet:1", "x", "b.parquet:3", "c.parquet:1"] + [
        "c.parquet:2",
        "2.0",
    ]


@pytest.mark.parametrize("kind", ["parquet", "csv"])
@pytest.mark.parametrize(("names", "twice"), [(["text", "text", "url"], "text"), (["text", "url", "url"], "url")])
def test_two_columns_of_one_name(tmp_path, kind, names, twice):
    rows = [["a", "b", "c"], ["d", "e", "f"]]
    if kind == "csv":
        (tmp_path / "a.csv").write_text("\n".join(",".join(row) for row in [names, *rows]))
    else:
        columns = [pa.array(column) for column in zip(*rows, strict=True)]
        pq.write_table(pa.Table.from_arrays(columns, names=names), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=f"2 columns are called '{twice}'; rename or remove all but one"):
        read(tmp_path, fields=("url",))
    if twice == "url":
        assert [document.text for document in read(tmp_path)[1]] == ["a", "d"]


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("quality_signals", "[" * 100_000, "with quality_signals that are not JSON"),
        ("quality_signals", "{", "with quality_signals that are not JSON"),
        ("quality_signals", '{"rps_doc_ml_palm_score": [[0, 9, 5.0]]}', "with rps_doc_ml_palm_score outside 0..1"),
        ("rps_doc_ml_palm_score", 5.0, "with rps_doc_ml_palm_score outside 0..1"),
        ("rps_doc_ml_palm_score", -0.1, "with rps_doc_ml_palm_score outside 0..1"),
        ("rps_doc_ml_palm_score", 1, ""),
        ("rps_doc_ml_palm_score", float("nan"), ""),
    ],
)
def test_tags_that_cannot_be(tmp_path, field, value, reason):
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "a", field: value}) + '\n{"text": "good"}\n')
    settings = DocumentsSettings(path=str(tmp_path), language="ar", max_bad_share=1.0)
    tag = "rps_doc_ml_palm_score"
    reader = FileReader(settings, source="s", fields=(tag, "quality_signals"), tags=(tag,))
    assert len(list(reader)) == 2 - bool(reason)
    assert reader.counts[tmp_path / "a.jsonl"].bad == ({reason: 1} if reason else {})
