"""Bad input through the whole task: counted and named, nothing lost silently, and past a share the run stops."""

import datetime
import gzip
import json
import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow_datasets as tfds
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
    assert counts["a.jsonl"] == {"documents": 100, "bad": {}, "other": {}, "unread": {}, "damage": ""}
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


def test_nothing_read_is_said_with_the_reasons(folder, tmp_path):
    (folder / "a.jsonl").write_text("{\n{\n")
    (folder / "b.jsonl").write_text('{"text": ""}\n')
    with pytest.raises(UserError, match="no document was read .2 not JSON, 1 empty.; see report.md"):
        run(folder, tmp_path / "out", max_bad_share=1.0)


def test_pareto_samples_by_probabilities_only(folder, tmp_path):
    value = config(folder)
    value.corpus.rules.arabic = {"x": base.rule("word_count", "pareto", 9.0)}
    with pytest.raises(UserError, match="corpus.rules.arabic.x: pareto samples by a probability, which word_count is"):
        task.run(settings_of(value), tmp_path)


def test_binary_junk_under_every_name(folder, tmp_path):
    junk = random.Random(1).randbytes(5000)
    names = ("j.jsonl.gz", "j.jsonl.zst", "j.jsonl.bz2", "j.jsonl.xz", "j.parquet", "j.csv.gz", "j.warc.gz", "j.warc")
    for name in names:
        (folder / name).write_bytes(junk)
    written, counts, _ = run(folder, tmp_path / "out", max_damaged_share=0.9)
    assert written == 100
    assert all(counts[name]["damage"] for name in names)
    (folder / "j.txt").write_bytes(junk)
    with pytest.raises(UserError, match=r"j.txt: too many bad records \(0 good, \d+ with invalid UTF-8"):
        run(folder, tmp_path / "text", max_damaged_share=0.9)


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
        == {"documents": 0, "bad": {}, "other": {}, "unread": {}, "damage": ""}
    )


def test_parquet_of_another_schema(folder, tmp_path):
    pq.write_table(pa.table({"body": ["x"], "id": ["1"]}), folder / "p.parquet")
    with pytest.raises(UserError, match="p.parquet: no column 'text'; it has body, id"):
        run(folder, tmp_path / "out", max_damaged_share=1.0)


def test_all_that_is_not_read_is_in_the_report(folder, tmp_path):
    (folder / "README.md").write_text("x")
    (folder / ".hidden.jsonl").write_text("x")
    (folder / "e.jsonl").write_text("")
    (folder / "e.jsonl.gz").write_bytes(gzip.compress(b"\n\n"))
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), folder / "e.parquet")
    (folder / "linked.jsonl").symlink_to(tmp_path / "nowhere")
    lines = rows(20, prefix="d") + ["{", '{"text": "a\\u0000b"}']
    dates = ["2024/03/05", "05/03/2024", "06/03/2024", "soon"]
    lines += [json.dumps({"text": text, "date": date}) for text, date in zip(texts(4, seed=9), dates, strict=True)]
    (folder / "d.jsonl").write_text("\n".join(lines))
    value = config(folder)
    value.corpus.sources.crawl.update(rules="", max_bad_share=0.5)
    (tmp_path / "out").mkdir()
    task.run(settings_of(value), tmp_path / "out")
    report = (tmp_path / "out" / "report.md").read_text()
    cells = {
        tuple(cell.strip() for cell in line.strip("| ").split("|"))[1:4]
        for line in report.partition("## Not read")[2].partition("\n## ")[0].splitlines()
        if line.startswith("| crawl")
    }
    assert cells == {
        ("files", "hidden", "1"),
        ("files", "empty", "3"),
        ("files", "of another kind (.md)", "1"),
        ("files", "a link to nothing", "1"),
        ("records", "not JSON", "1"),
        ("records", "with NUL characters, as in UTF-16 without a byte order mark", "1"),
        ("values", "date like 00/00/0000", "2"),
        ("values", "date like a", "1"),
    }


def test_every_source_is_looked_at_before_the_work(folder, tmp_path):
    value = config(folder)
    (tmp_path / "more").mkdir()
    value.corpus.sources.second = value.corpus.sources.crawl
    value.corpus.sources.second.path = str(tmp_path / "more")
    for name, content, message in (
        ("a.csv", b"id,body\n1,x\n", "a.csv: no column 'text'; it has id, body"),
        ("a.tsv.gz", gzip.compress(b"id\tbody\n"), "a.tsv.gz: no column 'text'"),
        ("a.parquet", None, "a.parquet: no column 'text'; it has body"),
    ):
        if content is None:
            pq.write_table(pa.table({"body": ["x"]}), tmp_path / "more" / name)
        else:
            (tmp_path / "more" / name).write_bytes(content)
        (tmp_path / "out").mkdir(exist_ok=True)
        with pytest.raises(UserError, match=message):
            task.run(settings_of(value), tmp_path / "out")
        assert list((tmp_path / "out").iterdir()) == []
        (tmp_path / "more" / name).unlink()


@pytest.mark.parametrize("names", [("bytes", "words", "known_tags", "features"), ("fields", "url", "split")])
def test_features_may_have_any_name(folder, tmp_path, names):
    (folder / "a.jsonl").write_text(json.dumps({"text": texts(1)[0]} | {name: f"own {name}" for name in names}))
    value = config(folder)
    value.corpus.sources.crawl.update(rules="", validation_share=0.0)
    value.corpus.features = names
    (tmp_path / "out").mkdir()
    task.run(settings_of(value), tmp_path / "out")
    (record,) = tfds.builder_from_directory(tmp_path / "out" / "crawl").as_data_source("train")
    assert {name: record[name].decode() for name in names} == {name: f"own {name}" for name in names}


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("features", ("url", "urll"), "features: .* field 'urll'; did you mean url"),
        ("features", ("licence",), "features: .* field 'licence'; known: address, date, domain, id"),
        ("url_field", "adress", "sources.crawl.url_field: .* field 'adress'; did you mean address"),
    ],
)
def test_a_field_that_no_record_has_is_told_before_the_work(folder, tmp_path, key, value, message):
    (folder / "z.jsonl").write_text("{\n" + json.dumps({"text": "x", "address": "http://x", "rare": 1}))
    pq.write_table(pa.table({"text": ["y"], "column": ["z"]}), folder / "z.parquet")
    wrong = config(folder)
    holder = wrong.corpus if key == "features" else wrong.corpus.sources.crawl
    holder[key] = value
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match=f"^config.corpus.{message}"):
        task.run(settings_of(wrong), tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []
    wrong.corpus.features, wrong.corpus.sources.crawl.url_field = ("rare", "column", "domain"), "address"
    wrong.corpus.sources.crawl.update(rules="", max_bad_share=0.5)
    task.run(settings_of(wrong), tmp_path / "out")


def test_a_tag_that_is_no_number_is_computed(folder, tmp_path):
    for value in ("NaN", "Infinity", "-1e999", "9" * 400, "[[0, 5, NaN]]", "true"):
        (folder / "a.jsonl").write_text(f'{{"text": "واحد اثنان ثلاثة", "word_count": {value}}}')
        settings = config(folder)
        settings.corpus.sources.crawl.update(rules="", validation_share=0.0)
        settings.corpus.features, settings.corpus.tags = ("tags",), ("word_count",)
        (tmp_path / "out").mkdir(exist_ok=True)
        task.run(settings_of(settings), tmp_path / "out")
        (record,) = tfds.builder_from_directory(tmp_path / "out" / "crawl").as_data_source("train")
        assert json.loads(record["tags"].decode()) == {"word_count": 3.0}


def test_newest_is_newest_whatever_the_type_of_the_dates(folder, tmp_path):
    moments = [datetime.datetime(year, 5, 1, 12) for year in (2020, 2024, 2022)]
    columns = {
        "timestamp": pa.array(moments, pa.timestamp("ns", "Asia/Riyadh")),
        "date": pa.array([moment.date() for moment in moments], pa.date32()),
        "milliseconds": pa.array([int(moment.timestamp() * 1000) for moment in moments]),
        "string": pa.array([moment.strftime("%Y/%m/%d") for moment in moments]),
    }
    (folder / "a.jsonl").unlink()
    for number, dates in enumerate(columns.values()):
        table = {"text": texts(1, seed=number) * 3, "id": ["old", "new", "middle"], "date": dates}
        pq.write_table(pa.table(table), folder / f"{number}.parquet")
    value = config(folder, keep="newest")
    value.corpus.sources.crawl.update(rules="", validation_share=0.0)
    value.corpus.features = ("date",)
    (tmp_path / "out").mkdir()
    task.run(settings_of(value), tmp_path / "out")
    kept = list(tfds.builder_from_directory(tmp_path / "out" / "crawl").as_data_source("train"))
    assert [record["id"] for record in kept] == [b"new"] * 4
    assert {record["date"].decode()[:4] for record in kept[:2]} == {"2024"}


@pytest.mark.slow
@pytest.mark.long
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
