"""The pipeline from sources to datasets: lays out the stages, has them run, puts the shards together.

    read -> clean -> judge -> write                                                    (no deduplication), or
    read -> clean -> judge -> sign -> keep | exact | bands | clusters | load -> write

At a bar everything before has to be done. Tasks of a stage share nothing but the files of the stage before.
"""

import gzip
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from absl import logging

from allam_jax.corpus.corpus_plan import Plan
from allam_jax.corpus.shards import assemble, read_manifest
from allam_jax.corpus.tally import Tally, merge
from allam_jax.files import atomic_path, read_json


def outdated(plan: Plan, *, workdir: Path) -> list[str]:
    """Sources whose dataset is not there, or follows from other facts than the plan's."""
    manifests = {name: read_manifest(workdir / name) for name in plan.sources}
    return [name for name, found in manifests.items() if found is None or found["metadata"] != plan.facts(name)]


def run(plan: Plan, *, workdir: Path, executor: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Runs all stages and writes a dataset for every source of the plan; returns the tally of each.

    Beside the dataset NAME, `NAME.dropped.jsonl.gz` says of every document that went `id` and `reasons`.

    What a killed run has done already is taken over. The files between the steps are removed at the end.

    Args:
      plan: What to do.
      workdir: Datasets are written to `workdir/NAME`.
      executor: Values of `config.corpus.executor`.

    Raises:
      UserError: Of the steps: unreadable files or too many bad records, no document for a split, a full disk.
    """
    # datatrove takes a second to import, which those who find everything done need not wait for.
    from allam_jax.corpus import executors

    executors.run_stages(_stages(plan), logs=plan.work / "logs", settings=executor)
    tallies = {}
    for name in plan.sources:
        ranks = [rank for rank, part in enumerate(plan.parts) if part.source == name]
        tallies[name] = _tally(plan, ranks)
        _write_dropped(plan, ranks, path=workdir / f"{name}.dropped.jsonl.gz")
        assemble(
            [(plan.directory(rank) / "shards", read_json(plan.directory(rank) / "counts.json")) for rank in ranks],
            directory=workdir / name,
            name=name,
            validation_share=plan.sources[name]["validation_share"],
            seed=plan.seed,
            metadata=plan.facts(name),
            fields=plan.features,
        )
        logging.info("corpus %s: written", name)
    return tallies


def clear(plan: Plan) -> None:
    """Removes what lies between the steps, of this plan and of earlier ones that were given up."""
    for work in plan.work.parent.glob(".work-*"):
        shutil.rmtree(work, ignore_errors=True)


def _stages(plan: Plan) -> list[tuple[str, list[Any], int]]:
    from allam_jax.corpus import resolve, steps

    tally = Tally()
    judged = [steps.Read(plan, tally), steps.Clean(plan, tally)]
    if any(plan.tags(name) for name in plan.sources):
        judged.append(steps.Judge(plan, tally))
    parts = len(plan.parts)
    if not plan.deduplicates:
        return [("write", [*judged, steps.Write(plan, tally)], parts)]
    stages: list[tuple[str, list[Any], int]] = [
        ("clean", [*judged, steps.Sign(plan, tally), steps.Keep(plan, tally)], parts),
        ("exact", [resolve.Exact(plan)], 1),
    ]
    if plan.settings["dedup"]["minhash"]:
        stages.append(("bands", [resolve.Bands(plan)], plan.minhash.bands))
        stages.append(("clusters", [resolve.Clusters(plan)], 1))
    return [*stages, ("write", [steps.Load(plan, tally), steps.Write(plan, tally)], parts)]


def _write_dropped(plan: Plan, ranks: list[int], *, path: Path) -> None:
    """One line for each document that went: its id and the reasons; nothing where all stayed."""
    files = [plan.directory(rank) / f"{stage}.dropped" for rank in ranks for stage in ("clean", "write")]
    files = [file for file in files if file.exists() and file.stat().st_size]
    if not files:
        path.unlink(missing_ok=True)
        return
    with atomic_path(path) as temporary, gzip.GzipFile(temporary, "wb", mtime=0) as target:
        for file in files:
            with open(file, "rb") as source:
                shutil.copyfileobj(source, target)


def _tally(plan: Plan, ranks: list[int]) -> dict[str, Any]:
    total: dict[str, Any] = {}
    for rank in ranks:
        for path in (plan.directory(rank) / "clean.json", plan.directory(rank) / "write.json"):
            if path.exists():
                total = merge(total, read_json(path))
    return total
