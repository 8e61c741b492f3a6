"""Task `check_planted`: what a corpus run found of the damage that task `plant` planted."""

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from absl import logging

from allam_jax.config import require
from allam_jax.corpus.planted_check import scores
from allam_jax.files import read_json, write_text
from allam_jax.report.markdown import table
from allam_jax.settings import Settings


def run(config: Settings, workdir: Path) -> dict[str, Any]:
    """Writes `report.md`; returns recall and precision by kind."""
    crawl = Path(require(config.planted.crawl, key="planted.crawl", hint="name the directory of the task plant"))
    corpus = Path(require(config.planted.corpus, key="planted.corpus", hint="name the directory of the task corpus"))
    report = read_json(corpus / "report.json", kind=dict)
    dedup = read_json(corpus / "config.json", keys={"corpus": dict})["corpus"]["dedup"]
    rows: dict[str, Any] = {}
    truth: list[dict[str, Any]] = []
    dropped: dict[str, list[str]] = {}
    stored: dict[str, str] = {}
    for folder in sorted(path for path in crawl.iterdir() if (path / "truth").exists()):
        for file in sorted(folder.glob("*.jsonl.gz")):
            rows |= {row["id"]: row for row in _lines(file)}
        truth += map(json.loads, (folder / "truth").read_text(encoding="utf-8").split("\n")[:-1])
        dropped |= {row["id"]: row["reasons"] for row in _lines(corpus / f"{folder.name}.dropped.jsonl.gz")}
        stored |= _stored(corpus / folder.name)
    lost = len(rows) - len(dropped) - len(stored)
    found = scores(
        rows,
        truth,
        dropped,
        stored,
        repaired=sum(int(tally.get("care", {}).get("mojibake", 0)) for tally in report["sources"].values()),
        similarity=dedup["verify"],
        shingle=dedup["shingle"],
    )
    keys = ("kind", "planted", "found", "recall", "flagged", "right", "precision")
    lines = [{"kind": kind, **values} for kind, values in sorted(found.items())]
    logging.info("planted damage: %s", found)
    text = f"# Planted damage\n\n{len(rows):,} documents read, {lost} lost.\n\n{table(lines, keys)}\n"
    write_text(workdir / "report.md", text)
    return {"documents": len(rows), "lost": lost, "kinds": found}


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    if path.exists():
        with gzip.open(path, "rt", encoding="utf-8") as file:
            yield from map(json.loads, file)


def _stored(directory: Path) -> dict[str, str]:
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(directory)
    return {
        record["id"].decode(): record["text"].decode()
        for split in builder.info.splits
        for record in builder.as_data_source(split)
    }
