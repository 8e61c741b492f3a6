import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from allam_jax.corpus.readers import FileReader
from allam_jax.corpus.settings import DocumentsSettings
from allam_jax.errors import UserError

TEXTS = ["مرحبا بالعالم", "hello", "سطر\nثان", "x" * 5000]
JSONL = "".join(json.dumps({"text": text, "id": number}) + "\n" for number, text in enumerate(TEXTS)).encode()


def read(path, *, fields=(), **settings):
    settings = {"language": "ar", "max_bad_share": 0.0} | settings
    reader = FileReader(DocumentsSettings(path=str(path), **settings), source="s", fields=fields)
    return reader, list(reader)


def compress(content: bytes, suffix: str) -> bytes:
    if suffix == ".gz":
        return gzip.compress(content)
    return zstandard.compress(content) if suffix == ".zst" else content


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_jsonl(tmp_path, suffix):
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(compress(JSONL, suffix))
    _, documents = read(path)
    assert [(document.text, document.id) for document in documents] == [(t, str(i)) for i, t in enumerate(TEXTS)]
    assert {(document.source, document.language) for document in documents} == {("s", "ar")}


def test_zstd_of_several_frames_and_more_than_one_block(tmp_path):
    lines = [json.dumps({"text": f"line {number} " + "y" * 400}).encode() for number in range(20_000)]
    frames = [zstandard.compress(b"\n".join(part) + b"\n") for part in (lines[:7_000], lines[7_000:])]
    path = tmp_path / "a.jsonl.zst"
    path.write_bytes(b"".join(frames))
    _, documents = read(path)
    assert [document.text for document in documents] == [json.loads(line)["text"] for line in lines]


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
@pytest.mark.parametrize("kept", [0.001, 0.3, 0.9, 0.999])
def test_cut_off_archives_are_an_error(tmp_path, suffix, kept):
    lines = b"".join(json.dumps({"text": f"{number * 7919 % 10007} text"}).encode() + b"\n" for number in range(20_000))
    content = compress(lines, suffix)
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(UserError, match="a.jsonl.*: damaged or cut short .*fetch it again") as error:
        read(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_no_damaged_byte_of_an_archive_passes_unseen(tmp_path, suffix):
    content = gzip.compress(JSONL) if suffix == ".gz" else zstandard.ZstdCompressor(write_checksum=True).compress(JSONL)
    path = tmp_path / f"a.jsonl{suffix}"
    refused = 0
    for position in range(len(content)):
        path.write_bytes(content[:position] + bytes([content[position] ^ 0x55]) + content[position + 1 :])
        try:
            _, documents = read(path)
        except UserError:
            refused += 1
        else:  # a byte without influence on the content, such as gzip's time stamp
            assert [document.text for document in documents] == TEXTS
    assert refused > 0.8 * len(content)


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


def test_text_with_windows_line_ends_and_a_byte_order_mark(tmp_path):
    (tmp_path / "a.txt").write_bytes("\ufeffone\r\ntwo\r\n".encode())
    assert [document.text for document in read(tmp_path / "a.txt")[1]] == ["one", "two"]


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
    with pytest.raises(UserError, match="no documents in .*a.jsonl; the corpus is empty"):
        read(tmp_path)
