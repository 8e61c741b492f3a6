"""Task `corpus`: every source becomes a dataset directory of document shards, `workdir/NAME`, with a report."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

from absl import logging

from allam_jax.config import require
from allam_jax.corpus import pipeline
from allam_jax.corpus.corpus_plan import make_corpus_plan
from allam_jax.corpus.corpus_report import write_corpus_report
from allam_jax.corpus.first_look import check_fields, check_inputs
from allam_jax.corpus.shards import read_manifest
from allam_jax.settings import Settings


def run(config: Settings, workdir: Path) -> dict[str, Any]:
    """Reads, cleans, deduplicates and writes `config.corpus.sources`; returns counts by source and split.

    Datasets that are there and follow from the same config are left as they are.
    """
    sources = require(config.corpus.sources, key="corpus.sources", hint="name at least one source")
    plan = make_corpus_plan(config.corpus, workdir=workdir, seed=config.seed)
    wanted = pipeline.outdated(plan, workdir=workdir)
    if wanted:
        whole = plan
        if not plan.shares_duplicates:
            settings = dataclasses.replace(config.corpus, sources={name: sources[name] for name in wanted})
            plan = make_corpus_plan(settings, workdir=workdir, seed=config.seed)
        check_inputs(plan)
        check_fields(whole)
        report = functools.partial(write_corpus_report, plan, workdir=workdir)
        pipeline.run(plan, workdir=workdir, report=report)
        pipeline.clear(plan)
    return {name: _counts(workdir / name) for name in sources}


def _counts(directory: Path) -> dict[str, Any]:
    manifest = read_manifest(directory)
    assert manifest is not None
    counts = {
        split: {key: values[key] for key in ("documents", "bytes", "words")}
        for split, values in manifest["splits"].items()
    }
    logging.info("corpus %s: %s", directory.name, counts)
    return counts
