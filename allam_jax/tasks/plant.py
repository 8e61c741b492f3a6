"""Task `plant`: real documents with planted damage as a user's files, `workdir/NAME/*.jsonl.gz`, and `truth.jsonl`."""

import contextlib
import gzip
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from allam_jax.config import require
from allam_jax.corpus import catalog
from allam_jax.corpus.planted import KINDS, plant
from allam_jax.files import atomic_path, child
from allam_jax.settings import Settings


def run(config: Settings, workdir: Path) -> dict[str, Any]:
    """Writes each of `config.planted.sources`; returns the number of rows and of each kind of damage."""
    planted = config.planted
    require(planted.sources, key="planted.sources", hint="name at least one source")
    foreign = itertools.chain.from_iterable(map(catalog.documents, planted.foreign))
    counts: dict[str, Any] = {}
    for name, sources in sorted(planted.sources.items()):
        documents = itertools.chain.from_iterable(map(catalog.documents, sources))
        rows = plant(documents, foreign=foreign, share=planted.share, seed=config.seed)
        counts[name] = dict.fromkeys(("documents", *KINDS), 0)
        with (
            atomic_path(child(workdir, name, what="config.planted.sources")) as temporary,
            contextlib.ExitStack() as stack,
        ):
            temporary.mkdir()
            targets = [stack.enter_context(_target(temporary, number)) for number in range(planted.files)]
            truths = stack.enter_context(open(temporary / "truth", "w", encoding="utf-8"))
            for row, truth in rows:
                counts[name]["documents"] += "#" not in row["id"]
                # Rows planted beside a document follow it in the same file.
                target = targets[counts[name]["documents"] % len(targets)]
                target.write(f"{json.dumps(row, ensure_ascii=False)}\n".encode())
                if truth is not None:
                    counts[name][truth["kind"]] += 1
                    print(json.dumps(truth, ensure_ascii=False), file=truths)
    return counts


@contextlib.contextmanager
def _target(folder: Path, number: int) -> Iterator[gzip.GzipFile]:
    # The file stores no name and no time, so that the same rows give the same bytes.
    with open(folder / f"{number}.jsonl.gz", "wb") as file, gzip.GzipFile("", "wb", 3, file, mtime=0) as target:
        yield target
