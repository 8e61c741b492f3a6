"""Task `plant`: real documents with planted damage as a user's files, `workdir/NAME/*.jsonl.gz`, and `truth.jsonl`."""

import gzip
import itertools
import json
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from allam_jax.config import require
from allam_jax.corpus import catalog
from allam_jax.corpus.planted import KINDS, plant
from allam_jax.files import atomic_path


def run(config: ConfigDict, workdir: Path) -> dict[str, Any]:
    """Writes each of `config.planted.sources`; returns the number of rows and of each kind of damage."""
    planted = config.planted
    require(planted.sources, key="planted.sources", hint="name at least one source")
    foreign = itertools.chain.from_iterable(map(catalog.documents, planted.foreign))
    counts: dict[str, Any] = {}
    for name, sources in sorted(planted.sources.items()):
        documents = itertools.chain.from_iterable(map(catalog.documents, sources))
        rows = plant(documents, foreign=foreign, share=planted.share, seed=config.seed)
        counts[name] = dict.fromkeys(("documents", *KINDS), 0)
        with atomic_path(workdir / name) as temporary:
            temporary.mkdir()
            targets = [
                gzip.open(temporary / f"{number}.jsonl.gz", "wt", compresslevel=3, encoding="utf-8")
                for number in range(planted.files)
            ]
            with open(temporary / "truth", "w", encoding="utf-8") as truths:
                for number, (row, truth) in enumerate(rows):
                    counts[name]["documents"] += 1
                    print(json.dumps(row, ensure_ascii=False), file=targets[number % len(targets)])
                    if truth is not None:
                        counts[name][truth["kind"]] += 1
                        print(json.dumps(truth, ensure_ascii=False), file=truths)
            for target in targets:
                target.close()
    return counts
