"""The pipeline as a whole: what is kept against brute force, and the same shards whoever does the work."""

import gzip
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from pipeline_corpus import config, files_of, plan_of, run, write_crawl

from allam_jax.corpus.minhash import MinHash
from allam_jax.corpus.settings import DedupSettings
from allam_jax.corpus.shards import read_manifest
from allam_jax.errors import UserError

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def crawl(tmp_path_factory):
    folder = tmp_path_factory.mktemp("crawl") / "files"
    return folder, write_crawl(folder)


@pytest.fixture(scope="module")
def reference(crawl, tmp_path_factory):
    """One worker, nothing interrupted."""
    workdir = tmp_path_factory.mktemp("reference")
    plan, tallies = run(config(crawl[0]), workdir)
    return workdir, plan, tallies["crawl"]


def records(directory):
    builder = tfds.builder_from_directory(directory)
    return [
        {key: value.decode() for key, value in record.items()}
        for split in ("train", "validation")
        for record in builder.as_data_source(split)
    ]


def words_of(text):
    return re.findall(r"[^\W_]+", text.lower())


def keep_longest(rows, key):
    """Brute force: of the rows with one key, the longest, the first among equals; rows without a key all stay."""
    best = {}
    for number, row in enumerate(rows):
        if key(row) is not None:
            best.setdefault(key(row), []).append((-len(row["text"].encode()), number))
    removed = {number for group in best.values() for _, number in group} - {min(group)[1] for group in best.values()}
    return [row for number, row in enumerate(rows) if number not in removed]


def brute_force(rows):
    """Rules, addresses, texts, then clusters of all pairs that agree in a band of signatures."""
    rows = [row for row in rows if len(words_of(row["text"])) >= 30]
    rows = keep_longest(rows, lambda row: re.sub(r"^https?://(www\.)?", "", row["url"]))
    rows = keep_longest(rows, lambda row: tuple(words_of(row["text"])))
    minhash = MinHash(DedupSettings(shingle=5))
    bands = [minhash.signature(minhash.shingles([words_of(row["text"])])[0]).reshape(14, 9) for row in rows]
    parent = list(range(len(rows)))

    def root(node):
        while parent[node] != node:
            node = parent[node]
        return node

    for a in range(len(rows)):
        for b in range(a):
            if (bands[a] == bands[b]).all(axis=1).any():
                parent[root(a)] = root(b)
    numbered = [row | {"root": root(number)} for number, row in enumerate(rows)]
    return keep_longest(numbered, lambda row: row["root"])


def test_what_is_kept_is_what_brute_force_keeps(crawl, reference):
    workdir, _, tally = reference
    kept = records(workdir / "crawl")
    expected = brute_force(crawl[1])
    assert {row["id"]: row["text"] for row in kept} == {row["id"]: row["text"] for row in expected}
    dropped = tally["duplicates"]
    assert all(dropped[reason]["documents"] >= 5 for reason in ("duplicate URL", "duplicate text", "near-duplicate"))
    total = len(kept) + tally["rules"]["short"]["dropped"] + sum(counts["documents"] for counts in dropped.values())
    assert total == tally["read"]["documents"] == len(crawl[1]) == 160


def test_records_hold_their_features(crawl, reference):
    originals = {row["id"]: row for row in crawl[1]}
    for row in records(reference[0] / "crawl"):
        original = originals[row["id"]]
        assert (row["url"], row["date"], row["language"]) == (original["url"], original["date"], "ar")
        assert row["domain"] == re.search(r"site\d\.example", original["url"]).group()
        assert json.loads(row["tags"])["word_count"] == len(words_of(original["text"]))
    for split in read_manifest(reference[0] / "crawl")["splits"].values():
        for shard in split["shards"]:
            content = (reference[0] / "crawl" / shard["file"]).read_bytes()
            assert hashlib.sha256(content).hexdigest() == shard["sha256"]


def test_counts_add_up(crawl, reference):
    _, _, tally = reference
    domains = Counter(re.search(r"site\d\.example", row["url"]).group() for row in crawl[1])
    assert tally["domains"]["before"] == domains
    assert sum(tally["domains"]["after"].values()) == tally["written"]["documents"]
    assert tally["steps"]["read"]["bytes"] == sum(len(row["text"].encode()) for row in crawl[1])
    assert sum(tally["tags"]["word_count"].values()) == 160
    assert len(tally["samples"]["dropped"]["short"]) == min(10, tally["rules"]["short"]["fails"])
    assert all(len(words_of(row["text"])) < 30 for *_, row in tally["samples"]["dropped"]["short"])


def test_every_document_that_went_is_listed_with_its_reasons(crawl, reference):
    workdir, _, tally = reference
    with gzip.open(workdir / "crawl.dropped.jsonl.gz", "rt", encoding="utf-8") as file:
        dropped = {row["id"]: row["reasons"] for row in map(json.loads, file)}
    kept = {row["id"] for row in records(workdir / "crawl")}
    assert sorted([*dropped, *kept]) == sorted(row["id"] for row in crawl[1])
    counts = Counter(reason for reasons in dropped.values() for reason in reasons)
    assert counts["short"] == tally["rules"]["short"]["fails"]
    assert counts["near-duplicate"] == tally["duplicates"]["near-duplicate"]["documents"]


@pytest.mark.slow
def test_more_workers_write_the_same_bytes(crawl, reference, tmp_path):
    run(config(crawl[0]), tmp_path, workers=2)
    assert files_of(tmp_path / "crawl") == files_of(reference[0] / "crawl")
    name = "crawl.dropped.jsonl.gz"
    assert (tmp_path / name).read_bytes() == (reference[0] / name).read_bytes()


KILLED = """
import os, signal, sys
sys.path[:0] = {path!r}
from pipeline_corpus import config, run
from allam_jax.corpus import {module}
from pathlib import Path
original, calls = {module}.{target}, []
def dies(*arguments, **options):
    calls.append(1)
    if len(calls) == {call}:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*arguments, **options)
{module}.{target} = dies
run(config(Path({folder!r})), Path({workdir!r}))
"""


# Where the process is killed: module, function, call. Each start goes on where the last one was killed.
KILLS = (
    ("steps", "Sign._process", 60),
    ("resolve", "duplicates.band_pairs", 6),
    ("steps", "Write._process", 50),
    ("pipeline", "assemble", 1),
)


@pytest.mark.slow
def test_killed_and_restarted_writes_the_same_bytes(crawl, reference, tmp_path):
    path = [str(ROOT), str(Path(__file__).parent)]
    logs = plan_of(config(crawl[0]), workdir=tmp_path).work / "logs"
    done = {}
    for module, target, call in KILLS:
        script = KILLED.format(
            path=path, module=module, target=target, call=call, folder=str(crawl[0]), workdir=str(tmp_path)
        )
        killed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        assert not (tmp_path / "crawl").exists()
        before, done = done, {mark: mark.stat().st_mtime_ns for mark in logs.glob("*/completions/*")}
        assert len(done) > len(before), "nothing was done before"
        assert {mark: done[mark] for mark in before} == before  # not done again
    run(config(crawl[0]), tmp_path)
    assert {mark: mark.stat().st_mtime_ns for mark in done} == done
    assert files_of(tmp_path / "crawl") == files_of(reference[0] / "crawl")


@pytest.mark.slow
def test_policies_and_scope(crawl, tmp_path):
    newest = config(crawl[0], keep="newest")
    run(newest, tmp_path / "newest")
    dates = {row["id"]: row["date"] for row in crawl[1]}
    by_address = {}
    for row in crawl[1]:
        by_address.setdefault(re.sub(r"^https?://(www\.)?", "", row["url"]), []).append(row)
    kept = {row["id"] for row in records(tmp_path / "newest" / "crawl")}
    for rows in by_address.values():
        rows = [row for row in rows if len(words_of(row["text"])) >= 30]
        for row in rows:
            if row["id"] in kept:
                assert dates[row["id"]] == max(dates[other["id"]] for other in rows)

    both = config(crawl[0])
    both.corpus.sources.again = both.corpus.sources.crawl
    for scope, same in (("source", True), ("corpus", False)):
        both.corpus.dedup.scope = scope
        workdir = tmp_path / scope
        if scope == "corpus":  # the copy keeps nothing, which is an error of its own
            with pytest.raises(UserError, match=r"crawl: all \d+ documents were dropped: \d+ by rule .* as duplicate"):
                run(both, workdir)
        else:
            run(both, workdir)
            ids = [{row["id"] for row in records(workdir / name)} for name in ("crawl", "again")]
            assert (ids[0] == ids[1]) is same


def test_verification_keeps_what_only_seems_alike(crawl, tmp_path, reference):
    _, tallies = run(config(crawl[0], verify=0.999), tmp_path)
    assert "near-duplicate" not in tallies["crawl"].get("duplicates", {})
    assert reference[2]["duplicates"]["near-duplicate"]["documents"] > 5


def test_scripture_stays_as_it_is(tmp_path):
    verse = "بِسْمِ ٱللَّهِ ٱلرَّحْمَٰنِ \u0627\u0653 کـتاب a@b.example"
    (tmp_path / "files").mkdir()
    rows = [json.dumps({"text": f"{number} {verse}"}) for number in range(40)]
    (tmp_path / "files" / "a.jsonl").write_text("\n".join(rows))
    value = config(tmp_path / "files")
    value.corpus.sources.crawl.update(
        rules="", remove=("tashkeel", "tatweel"), repair=("look_alikes",), redact=("email",), untouched=True
    )
    value.corpus.dedup.update(url=False, text=False, minhash=False)
    value.corpus.features = ()
    run(value, tmp_path / "kept")
    assert sorted(row["text"] for row in records(tmp_path / "kept" / "crawl")) == sorted(
        f"{number} {verse}" for number in range(40)
    )
    value.corpus.sources.crawl.untouched = False
    _, tallies = run(value, tmp_path / "changed")
    changed = {row["text"].partition(" ")[2] for row in records(tmp_path / "changed" / "crawl")}
    assert changed == {"بسم ٱلله ٱلرحمن آ كتاب [EMAIL]"}
    tally = tallies["crawl"]
    assert tally["care"] == {"look_alikes": 40, "remove tashkeel": 40, "remove tatweel": 40, "nfc": 40}
    assert tally["redacted"] == {"email": 40}


def test_tags_of_records_are_taken(tmp_path):
    (tmp_path / "files").mkdir()
    signals = {"rps_doc_symbol_to_word_ratio": [[0, 9, 0.95]]}
    rows = [
        {
            "text": "كلمة " * 40 + str(number),
            "word_count": 5 if number < 10 else None,
            "quality_signals": json.dumps(signals),
        }
        for number in range(40)
    ]
    (tmp_path / "files" / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    value = config(tmp_path / "files")
    value.corpus.dedup.update(text=False, minhash=False)
    value.corpus.tags = ("rps_doc_symbol_to_word_ratio",)
    _, tallies = run(value, tmp_path / "out")
    assert tallies["crawl"]["rules"]["short"] == {
        "fails": 10,
        "dropped": 10,
        "bytes": pytest.approx(10 * 362, rel=0.02),
    }
    assert {json.loads(row["tags"])["rps_doc_symbol_to_word_ratio"] for row in records(tmp_path / "out" / "crawl")} == {
        0.95
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dedup.rows": 10}, "14 bands of 10 rows need 140 hashes"),
        ({"tags": ("nope",)}, "config.corpus.tags: no tag 'nope'"),
        (
            {"sources.crawl.rules": "french"},
            "sources.crawl.rules = 'french': no such set in config.corpus.rules .known: arabic.",
        ),
        ({"rules.arabic.short.tag": "nope"}, "config.corpus.rules.arabic.short.tag: no tag 'nope'; known: "),
        ({"executor.workers": 0}, "executor.workers = 0: expected 1 or more"),
        ({"executor.kind": "slurm"}, "executor.partition is empty"),
    ],
)
def test_wrong_values(crawl, tmp_path, change, message):
    value = config(crawl[0])
    with value.unlocked():
        value.corpus.update_from_flattened_dict(change)
    with pytest.raises(UserError, match=message):
        run(value, tmp_path)
    assert not (tmp_path / "crawl").exists()


def test_part_boundaries_do_not_lose_or_repeat(crawl):
    plan = plan_of(config(crawl[0]), workdir=Path("unused"))
    ids = [document.id for part in plan.parts for document in plan.reader(part)]
    assert ids == [row["id"] for row in crawl[1]]
    assert len(plan.parts) == 4
    assert np.all([len(list(plan.reader(part))) == 40 for part in plan.parts])
    assert os.path.isdir(crawl[0])
