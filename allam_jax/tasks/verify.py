"""Task `verify`: reads everything below a path that this code has written, and says what is whole and what is damaged.

It finds runs, checkpoints, weights directories, exports, tokenizers, datasets and token caches by their lists of files
(`checksums.py`) and compares the bytes of every listed file. Each is a row: whole, damaged (file and reason), or
unchecked (of another program, or written before there were checksums). Reports, figures and TensorBoard's files are not
listed, because no task reads them again.
"""

import dataclasses
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from allam_jax.checksums import FILE_LIST, FileList
from allam_jax.config import CHECKPOINTS_FOLDER, CONFIG_FILE, require
from allam_jax.corpus.found_files import DATASET_FILE
from allam_jax.corpus.shards import MANIFEST as DATASET_MANIFEST
from allam_jax.data.token_cache import MANIFEST as TOKENS_MANIFEST
from allam_jax.errors import UserError
from allam_jax.files import read_json, sha256_of_file, write_json
from allam_jax.report.markdown import table
from allam_jax.settings import Settings
from allam_jax.tokenizer.tokenizer_files import MODEL_FILES, TOKENIZER_FILES
from allam_jax.training.load import check_run_of
from allam_jax.training.metrics import METRICS_FILE, metrics_damage
from allam_jax.training.stored_checkpoints import checkpoint_damages, is_aside, list_steps, read_metadata, step_path
from allam_jax.weights.directory import is_weights_directory
from allam_jax.weights.safetensors_io import read_directory, written_with_list

REPORT_FILE = "verify.json"
_TITLES = {"state": "State", "kind": "Kind", "path": "Path", "reason": "Reason"}


@dataclasses.dataclass(frozen=True)
class Row:
    """One thing that was found."""

    path: Path
    kind: str
    state: str  # whole, damaged, unchecked
    reasons: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"path": str(self.path), "kind": self.kind, "state": self.state, "reasons": list(self.reasons)}


def run(config: Settings, workdir: Path) -> dict[str, Any]:
    """Checks `verify.path`, prints a row for each thing found, and writes them to `verify.json`.

    UserError if anything is damaged, or nothing is there.
    """
    path = Path(require(config.verify.path, key="verify.path", hint="give a workdir, export, dataset or any folder"))
    if not path.is_dir():
        raise UserError(f"{path}: no such directory")
    rows = list(verify(path))
    if not rows:
        raise UserError(f"{path}: holds nothing that this code has written or can read")
    shown = [{**row.as_dict(), "reason": "; ".join(row.reasons)} for row in rows]
    sys.stderr.write(table(shown, _TITLES) + "\n")
    write_json(workdir / REPORT_FILE, [row.as_dict() for row in rows])
    damaged = [row for row in rows if row.state == "damaged"]
    if damaged:
        raise UserError(f"{len(damaged)} of {len(rows)} are damaged, the first is {damaged[0].reasons[0]}")
    return {"whole": sum(row.state == "whole" for row in rows), "unchecked": sum(r.state == "unchecked" for r in rows)}


def verify(path: Path) -> Iterator[Row]:
    """A row for everything at or below `path`, in the order of paths; links are followed once."""
    seen: set[str] = set()
    covered: set[Path] = set()
    for name, folders, files in os.walk(path, followlinks=True):
        directory = Path(name)
        files = [file for file in files if (directory / file).is_file()]  # no pipe, which would be waited for
        folders[:] = sorted(folder for folder in folders if not folder.startswith(".") and not is_aside(folder))
        if os.path.realpath(name) in seen:
            folders.clear()
            continue
        seen.add(os.path.realpath(name))
        if directory in covered:
            continue
        kind = _kind(directory, set(files), set(folders))
        if FILE_LIST in files:
            yield _listed(directory, kind, covered)
        elif kind:
            yield _unlisted(directory, kind)
        if METRICS_FILE in files:
            yield _metrics(directory)


def _kind(directory: Path, files: set[str], folders: set[str]) -> str:
    if directory.parent.name == CHECKPOINTS_FOLDER and directory.name.isdigit():
        return "checkpoint"
    if is_weights_directory(directory):
        return "weights"
    if any(name.endswith(".safetensors") for name in files):
        return "safetensors"
    if TOKENS_MANIFEST in files:
        return "tokens"
    if DATASET_MANIFEST in files or DATASET_FILE in files:
        return "dataset"
    if CONFIG_FILE in files:
        return "workdir"
    return "tokenizer" if {*MODEL_FILES} & files else ""


def _row(directory: Path, kind: str, reasons: list[str], *, otherwise: str = "whole") -> Row:
    return Row(directory, kind, "damaged" if reasons else otherwise, tuple(reasons))


def _listed(directory: Path, kind: str, covered: set[Path]) -> Row:
    try:
        files = FileList.read(directory, remedy="copy it again")
    except UserError as error:
        return _row(directory, kind or "files", [str(error)])
    # A folder of which only the list is listed, such as a run's tokenizer, has its own row.
    covered |= {(directory / name).parent for name in files.files if Path(name).name != FILE_LIST} - {directory}
    if kind == "checkpoint":
        reasons = list(checkpoint_damages(directory)) or list(_of_another_run(directory))
    else:
        # What tasks read of a workdir is listed; beside it lie reports and the directories of other things.
        whole = kind in ("weights", "safetensors", "tokens", "dataset")
        read = {*files.files, *(TOKENIZER_FILES if {*MODEL_FILES} & files.files.keys() else ())}
        reasons = [str(damage) for damage in files.damages(reads=lambda name: whole or name in read)]
    return _row(directory, kind or "files", reasons, otherwise="whole" if files.has_hashes else "unchecked")


def _of_another_run(checkpoint: Path) -> Iterator[str]:
    try:
        check_run_of(checkpoint, read_metadata(checkpoint))
    except UserError as error:
        yield str(error)


def _unlisted(directory: Path, kind: str) -> Row:
    """Of another program, written before there were checksums, or without the list that belongs to it."""
    missing = f"{directory / FILE_LIST}: is missing"
    try:
        if kind in ("checkpoint", "weights", "tokens"):
            return _row(directory, kind, [missing])
        if kind == "safetensors":
            read_directory(directory)
            return _row(directory, kind, [missing] if written_with_list(directory) else [], otherwise="unchecked")
        if kind == "dataset" and (directory / DATASET_MANIFEST).exists():
            return _row(directory, kind, list(_damaged_shards(directory)))
        if kind == "workdir":
            read_json(directory / CONFIG_FILE, kind=dict)
    except UserError as error:
        return _row(directory, kind, [str(error)])
    return Row(directory, kind, "unchecked")


def _damaged_shards(directory: Path) -> Iterator[str]:
    splits = read_json(directory / DATASET_MANIFEST, keys={"splits": dict})["splits"]
    for shard in (shard for split in splits.values() for shard in split["shards"]):
        path = directory / shard["file"]
        if not path.is_file() or sha256_of_file(path) != shard["sha256"]:
            yield f"{path}: missing, or its bytes are not those that were written (sha256)"


def _metrics(directory: Path) -> Row:
    path, folder = directory / METRICS_FILE, directory / CHECKPOINTS_FOLDER
    expected = None
    for step in reversed(list_steps(folder)):
        try:
            metadata = read_metadata(step_path(folder, step))
            check_run_of(step_path(folder, step), metadata)
        except UserError:  # its own row says so
            continue
        expected = metadata.get("metrics")
        break
    reason = metrics_damage(path, expected=expected)
    return _row(path, "metrics", [reason] if reason else [], otherwise="whole" if expected else "unchecked")
