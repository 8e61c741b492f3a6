"""The pipeline from sources to datasets: lays out the stages, runs them, and assembles the shards.

    read -> clean -> judge -> write                                                    (without deduplication), or
    read -> clean -> judge -> sign -> keep | exact | bands | clusters | load -> write

All tasks of a stage must end before the next stage, after a bar, begins. The tasks of one stage share only the files
that the stage before has written.
"""

import gzip
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from absl import logging

from allam_jax.corpus.corpus_plan import CorpusPlan
from allam_jax.corpus.readers import what_was_read
from allam_jax.corpus.shards import assemble, read_manifest
from allam_jax.corpus.tally import Tally, merge_tallies
from allam_jax.errors import UserError
from allam_jax.files import atomic_path, read_json, shown

_INPUTS = "inputs"  # the key of a manifest's metadata for what was read

Tallies = Mapping[str, Mapping[str, Any]]  # source -> tally


def outdated(plan: CorpusPlan, *, workdir: Path) -> list[str]:
    """The sources whose dataset is missing, or was written from other facts than the plan's."""
    return [name for name in plan.sources if not _is_current(plan, name, directory=workdir / name)]


def run(
    plan: CorpusPlan, *, workdir: Path, report: Callable[[Tallies], None] | None = None
) -> dict[str, dict[str, Any]]:
    """Runs all stages and writes a dataset `workdir/NAME` for every source of the plan; returns source -> tally.

    `report` gets these tallies before the first dataset is written, so that it can show why one would be empty.
    `NAME.dropped.jsonl.gz` beside the dataset NAME has the `id` and the `reasons` of every document that was dropped.
    A run that was killed continues: tasks that had ended are not repeated. UserError if a file is unreadable or has too
    many bad records, a split has no document, or the disk is full.
    """
    # Here, because datatrove takes a second to import, and a run that has nothing left to do does not need it.
    from allam_jax.corpus import executors

    executors.run_stages(_stages(plan), logs=plan.work / "logs", settings=plan.settings.executor)
    read = {name: _record_inputs(plan, name) for name in plan.sources}
    directories_of = {
        name: [plan.directory(rank) for rank, part in enumerate(plan.parts) if part.source == name]
        for name in plan.sources
    }
    tallies = {name: _tally(directories) for name, directories in directories_of.items()}
    for name, directories in directories_of.items():
        _write_dropped(directories, path=workdir / f"{name}.dropped.jsonl.gz")
    if report is not None:
        report(tallies)
    for name, tally in tallies.items():
        if not tally.get("written"):
            raise UserError(f"{name}: {_reasons(tally)}; see report.md and samples.md in {workdir}")
    for name, directories in directories_of.items():
        assemble(
            [(directory / "shards", read_json(directory / "counts.json")) for directory in directories],
            directory=workdir / name,
            name=name,
            validation_share=plan.sources[name].validation_share,
            seed=plan.seed,
            metadata=plan.facts(name) | {_INPUTS: read[name]},
            fields=plan.features,
        )
        logging.info("corpus %s: written", name)
    return tallies


def _is_current(plan: CorpusPlan, name: str, *, directory: Path) -> bool:
    manifest = read_manifest(directory)
    if manifest is None:
        return False
    facts = dict(manifest["metadata"])
    read = facts.pop(_INPUTS, {})  # older datasets do not say what they were made of
    for source, found in plan.inputs(name).items():
        lines = found.changed(read[source])[0] if source in read else []
        if lines:
            logging.warning("corpus %s: written again, because its inputs changed: %s", name, "; ".join(lines[:5]))
            return False
    return facts == plan.facts(name)


def _record_inputs(plan: CorpusPlan, name: str) -> dict[str, Any]:
    records = {source: found.record() for source, found in plan.inputs(name).items()}
    for source, record in records.items():
        for file, (*_, hash_) in record.items():
            if not hash_:
                raise UserError(
                    f"{shown(plan.found[source].files[file])}: changed while it was read; run the same command again"
                )
    return records


def _reasons(tally: Mapping[str, Any]) -> str:
    """Why no document of a source is left."""
    counts = {f"by rule {name!r}": rule.get("dropped", 0) for name, rule in tally.get("rules", {}).items()}
    counts |= {f"as {reason}": found["documents"] for reason, found in tally.get("duplicates", {}).items()}
    counts["left without text by the text care"] = tally.get("empty", 0)
    read = int(tally.get("read", {}).get("documents", 0))
    if not read:
        return f"no document was read ({what_was_read(tally.get('files', {}).values())})"
    named = ", ".join(f"{int(count)} {why}" for why, count in counts.items() if count)
    return f"all {read} documents were dropped: {named}"


def clear(plan: CorpusPlan) -> None:
    """Removes the files between the steps: those of this plan and those of earlier plans that never ended."""
    for work in plan.work.parent.glob(".work-*"):
        shutil.rmtree(work, ignore_errors=True)


def _stages(plan: CorpusPlan) -> list[tuple[str, list[Any], int]]:
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
    if plan.settings.dedup.minhash:
        stages.append(("bands", [resolve.Bands(plan)], plan.minhash.bands))
        stages.append(("clusters", [resolve.Clusters(plan)], 1))
    return [*stages, ("write", [steps.Load(plan, tally), steps.Write(plan, tally)], parts)]


def _write_dropped(directories: list[Path], *, path: Path) -> None:
    """Writes one line for each dropped document; removes the file where none was dropped."""
    files = [directory / f"{stage}.dropped" for directory in directories for stage in ("clean", "write")]
    files = [file for file in files if file.exists() and file.stat().st_size]
    if not files:
        path.unlink(missing_ok=True)
        return
    # Without the name of the temporary file and without a time, so that the same lines give the same bytes.
    with (
        atomic_path(path) as temporary,
        open(temporary, "wb") as compressed,
        gzip.GzipFile("", "wb", fileobj=compressed, mtime=0) as target,
    ):
        for file in files:
            with open(file, "rb") as source:
                shutil.copyfileobj(source, target)


def _tally(directories: list[Path]) -> dict[str, Any]:
    total: dict[str, Any] = {}
    for directory in directories:
        for path in (directory / "clean.json", directory / "write.json"):
            if path.exists():
                total = merge_tallies(total, read_json(path))
    return total
