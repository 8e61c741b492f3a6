"""What one record of any size costs in memory, in a corpus run of a process of its own: less than 1 GB."""

import bz2
import gzip
import json
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from processes import ROOT, child_environment

pytestmark = [pytest.mark.slow, pytest.mark.long]

RUN = """
import re, sys
from pathlib import Path
from allam_jax.tasks import corpus
from allam_jax.tasks.registry import settings_of
from configs import base
config = base.get_config("corpus")
config.corpus.sources.s = base.documents(
    path=sys.argv[1], language="en", max_bad_share=0.9, validation_share=0.0, text_unit="file"
)
corpus.run(settings_of(config), Path(sys.argv[2]))
print(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
"""
BLOCK = 100_000_000
FRAMES = {
    ".jsonl": (b'{"text": "', b'"}\n{"text": "good"}\n'),
    ".csv": (b'text\n"', b'"\ngood\n'),
    ".wet": (
        b"WARC/1.0\r\nWARC-Type: conversion\r\nContent-Length: %d\r\n\r\n",
        b"\r\n\r\nWARC/1.0\r\nWARC-Type: conversion\r\nContent-Length: 4\r\n\r\ngood\r\n\r\n",
    ),
}
COMPRESS = {".gz": gzip.compress, ".zst": zstandard.compress, ".bz2": bz2.compress, "": bytes}


@pytest.fixture
def peak_of(tmp_path):
    """Reads a folder; gives the peak of the process in bytes, and checks that the record is counted."""

    def run(folder, *, reason):
        (tmp_path / "out").mkdir()
        command = [sys.executable, "-c", RUN, folder, tmp_path / "out"]
        done = subprocess.run(
            list(map(str, command)), cwd=ROOT, env=child_environment(), capture_output=True, text=True, timeout=500
        )
        assert done.returncode == 0, done.stderr[-3000:]
        report = json.loads((tmp_path / "out" / "report.json").read_text())
        (counts,) = report["sources"]["s"]["files"].values()
        assert counts["bad"] == {reason: 1}
        return int(done.stdout.splitlines()[-1]) * 1024

    return run


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("a.jsonl.gz", 100 * BLOCK),
        ("a.csv.gz", 20 * BLOCK),
        ("a.wet.gz", 20 * BLOCK),
        ("a.jsonl.zst", 100 * BLOCK),
        ("a.jsonl.bz2", 5 * BLOCK),
        ("a.jsonl", 5 * BLOCK),
        ("a.csv", 5 * BLOCK),
    ],
)
def test_a_record_without_end(peak_of, tmp_path, name, size):
    _, suffix, *compression = Path(name).suffixes and ["", *Path(name).suffixes]
    compress = COMPRESS[compression[0] if compression else ""]
    before, after = FRAMES[suffix]
    block = compress(b"x" * BLOCK)
    (tmp_path / "texts").mkdir()
    with open(tmp_path / "texts" / name, "wb") as file:  # all these formats may have several members
        file.write(compress(before % size if b"%d" in before else before))
        for _ in range(size // BLOCK):
            file.write(block)
        file.write(compress(after))
    assert peak_of(tmp_path / "texts", reason="longer than max_record_bytes") < 1e9


@pytest.mark.parametrize("options", [{}, {"use_dictionary": False}, {"compression": "zstd"}])
def test_a_parquet_value_of_200_megabytes(peak_of, tmp_path, options):
    (tmp_path / "texts").mkdir()
    pq.write_table(pa.table({"text": ["x" * 200_000_000, "good"]}), tmp_path / "texts" / "a.parquet", **options)
    assert peak_of(tmp_path / "texts", reason="longer than max_record_bytes") < 1e9
