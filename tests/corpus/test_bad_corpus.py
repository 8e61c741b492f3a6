"""Bad input through the whole task: counted and named, nothing lost silently, and past a share the run stops."""

import gzip
import json
import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from pipeline_corpus import config, texts

from allam_jax.errors import UserError
from allam_jax.files import read_json
from allam_jax.tasks import corpus as task
from allam_jax.tasks.registry import settings_of
from configs import base


def rows(count, *, prefix):
    return [
        json.dumps({"text": text, "id": f"{prefix}{number}"})
        for number, text in enumerate(texts(count, seed=len(prefix)))
    ]


@pytest.fixture
def folder(tmp_path):
    """Sound files, 100 documents; tests add others."""
    path = tmp_path / "files"
    path.mkdir()
    (path / "a.jsonl").write_text("\n".join(rows(100, prefix="a")) + "\n")
    return path


def run(folder, workdir, **source):
    value = config(folder)
    value.corpus.sources.crawl.update(rules="", validation_share=0.05, **source)
    value.corpus.dedup.update(url=False, text=False, minhash=False)
    value.corpus.features = ()
    value.corpus.parts = 2
    workdir.mkdir()
    result = task.run(settings_of(value), workdir)["crawl"]
    files = read_json(workdir / "report.json")["sources"]["crawl"]["files"]
    counts = {name.rpartition("/")[2]: counts for name, counts in files.items()}
    written = sum(split["documents"] for split in result.values())
    assert written == sum(counts["documents"] for counts in counts.values())
    return written, counts, (workdir / "report.md").read_text()


def test_a_corpus_of_which_nothing_is_left_says_why(tmp_path, folder):
    value = config(folder)
    value.corpus.rules.arabic = {"brackets": base.rule("word_count", ">", 2.0)}
    (tmp_path / "work").mkdir()
    with pytest.raises(UserError, match="crawl: all 100 documents were dropped: 100 by rule 'brackets'; see report.md"):
        task.run(settings_of(value), tmp_path / "work")
    assert "| brackets | drop word_count > 2 | 100 |" in (tmp_path / "work" / "report.md").read_text()
    assert "a1" in (tmp_path / "work" / "samples.md").read_text()
    assert not (tmp_path / "work" / "crawl").exists()


@pytest.mark.parametrize(
    ("language", "message"),
    [
        ("arb", ".language = 'arb': give 'ar'"),
        ("/../../x", ".language = '/../../x': no language code"),
        ("xx", ": rule 'language' needs language_score, but lid.176 knows no language 'xx'"),
    ],
)
def test_a_language_that_nothing_knows_is_refused(tmp_path, folder, language, message):
    value = config(folder)
    value.corpus.sources.crawl.language = language
    with pytest.raises(UserError, match=f"config.corpus.sources.crawl{message}"):
        task.run(settings_of(value), tmp_path)


BAD_LINES = {
    b'{"text": "\xff\xfe"}': "with invalid UTF-8",
    random.Random(0).randbytes(300).replace(b"\n", b""): "with invalid UTF-8",
    b"{not json": "not JSON",
    b"[1, 2]": "not a JSON object",
    b'{"body": "x"}': "without field 'text'",
    b'{"text": 5}': "with field 'text' not a string",
    b'{"text": "  "}': "empty",
    b'{"text": "\\ud800"}': "with invalid Unicode",
}


def test_bad_records_are_counted_by_file_and_reason(folder, tmp_path):
    (folder / "b.jsonl").write_bytes(b"\n".join([*map(str.encode, rows(20, prefix="bb")), *BAD_LINES]))
    written, counts, report = run(folder, tmp_path / "out", max_bad_share=0.4)
    assert written == 120
    reasons = sorted(set(BAD_LINES.values()))
    assert sorted(counts["b.jsonl"]["bad"]) == reasons
    assert counts["b.jsonl"]["bad"]["with invalid UTF-8"] == 2
    assert counts["a.jsonl"] == {"documents": 100, "bad": {}, "other": {}, "damage": ""}
    assert "b.jsonl" in report
    assert all(reason in report for reason in reasons)


def test_past_the_share_the_run_stops_with_the_counts(folder, tmp_path):
    (folder / "b.jsonl").write_bytes(b"\n".join([*map(str.encode, rows(20, prefix="bb")), *BAD_LINES]))
    with pytest.raises(
        UserError, match=r"b.jsonl: too many bad records \(20 good, 1 empty, 1 not JSON, .*accepted share 0.2"
    ):
        run(folder, tmp_path / "out", max_bad_share=0.2)
    assert not (tmp_path / "out" / "crawl").exists()


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_cut_off_archives_are_named_and_kept_up_to_the_damage(folder, tmp_path, suffix):
    lines = "\n".join(rows(300, prefix="ccc")).encode()
    content = gzip.compress(lines) if suffix == ".gz" else zstandard.compress(lines)
    (folder / f"c.jsonl{suffix}").write_bytes(content[: len(content) * 9 // 10])
    with pytest.raises(UserError, match="c.jsonl.*damaged or cut short"):
        run(folder, tmp_path / "strict")
    written, counts, report = run(folder, tmp_path / "out", max_damaged_share=0.5)
    damaged = counts[f"c.jsonl{suffix}"]
    assert damaged["damage"].startswith("damaged or cut short")
    assert (100 < written < 400) or suffix == ".zst"  # a frame of Zstandard can be a single block
    assert f"c.jsonl{suffix}" in report
    assert "damaged or cut short" in report
    assert written == 100 + damaged["documents"]


def test_binary_junk_under_every_name(folder, tmp_path):
    junk = random.Random(1).randbytes(5000)
    for name in ("j.jsonl.gz", "j.jsonl.zst", "j.parquet"):
        (folder / name).write_bytes(junk)
    written, counts, _ = run(folder, tmp_path / "out", max_damaged_share=0.8)
    assert written == 100
    assert all(counts[name]["damage"] for name in ("j.jsonl.gz", "j.jsonl.zst", "j.parquet"))
    (folder / "j.txt").write_bytes(junk)
    with pytest.raises(UserError, match=r"j.txt: too many bad records \(0 good, \d+ with invalid UTF-8"):
        run(folder, tmp_path / "text", max_damaged_share=0.8)


def test_empty_files_are_no_error(folder, tmp_path):
    (folder / "e.jsonl").write_bytes(b"")
    (folder / "e.jsonl.gz").write_bytes(gzip.compress(b""))
    (folder / "e.txt").write_bytes(b"")
    written, counts, _ = run(folder, tmp_path / "out")
    assert written == 100
    assert (
        counts["e.jsonl"]
        == counts["e.jsonl.gz"]
        == counts["e.txt"]
        == {"documents": 0, "bad": {}, "other": {}, "damage": ""}
    )


def test_parquet_of_another_schema(folder, tmp_path):
    pq.write_table(pa.table({"body": ["x"], "id": ["1"]}), folder / "p.parquet")
    with pytest.raises(UserError, match="p.parquet: no column 'text'; it has body, id"):
        run(folder, tmp_path / "out", max_damaged_share=1.0)


@pytest.mark.slow
def test_a_line_of_50_megabytes(folder, tmp_path):
    line = "كلمة " * 5_600_000
    (folder / "l.jsonl").write_text(json.dumps({"text": line, "id": "long"}, ensure_ascii=False) + "\n")
    assert (folder / "l.jsonl").stat().st_size > 50_000_000
    value = config(folder)
    value.corpus.dedup.update(url=False, shingle=13)
    value.corpus.features = ()
    (tmp_path / "out").mkdir()
    result = task.run(value, tmp_path / "out")["crawl"]
    assert sum(split["bytes"] for split in result.values()) > 50_000_000
