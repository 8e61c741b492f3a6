"""Checkpoints hold all that a run needs to continue. They are written in the background and are complete or absent.

A checkpoint is a directory named by its step (`1200`), with three items: `state` (arrays, Orbax), `data` (JSON, the
position in every document stream) and `metadata` (JSON: what made it). Orbax writes to a temporary name and renames it
when everything is on disk, so a directory with a step's name is complete, whatever killed the run. Before a checkpoint
is deleted it is renamed. The next run removes the leftovers of both. All names are Orbax's own: a stock
`CheckpointManager` opens the directory of a run (docs/formats.md). `files.json` lists every file with its size and
hash, and has the checksums of the arrays as they were in memory: reading a checkpoint that is not what was saved fails
and names the file or the array.

On many hosts all processes must see the same directory and call the same methods at the same steps.
"""

import json
import os
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import orbax.checkpoint as ocp

from allam_jax.checksums import write_list
from allam_jax.errors import UserError
from allam_jax.parallel.distributed import barrier, gather, is_main_process
from allam_jax.training.settings import CheckpointSettings
from allam_jax.training.stored_checkpoints import (
    ITEMS,
    JSON_FILE,
    Restored,
    find_checkpoint,
    list_steps,
    restore_checkpoint,
    step_path,
)
from allam_jax.weights.array_checksums import ArrayChecksums, array_checksums, check_finite
from allam_jax.weights.orbax_arrays import save_args
from allam_jax.weights.orbax_logs import quiet_orbax

_TEMPORARY = ".orbax-checkpoint-tmp"
_DELETED = ".deleted"
_REMOVED = (
    "the checkpoint folder has been removed or emptied during the run; put it back and run the same command again to "
    "resume, or start anew with another --workdir"
)


class Checkpointer:
    """Writes and restores the checkpoints of one run, in one directory; a context manager.

    If a save fails in the background, the next call raises UserError. Earlier checkpoints stay.
    """

    def __init__(self, directory: Path, settings: CheckpointSettings):
        """Opens `directory` (created if missing) and removes what interrupted saves and removals have left in it."""
        quiet_orbax()
        self.directory = Path(directory).absolute()
        self._settings = settings  # say which checkpoints stay
        self._saving: int | None = None  # the step that is being written in the background
        self._newest: int | None = None  # the newest complete one that this run knows of
        self._saved: int | None = None  # the last one that it wrote itself
        # Of the one that is being written: the checksums of its arrays, and its other items.
        self._checksums: ArrayChecksums = {}
        self._written: dict[str, Any] = {}
        if is_main_process():
            with self._reporting(step=None):
                self.directory.mkdir(parents=True, exist_ok=True)
                self._remove_leftovers()
        barrier("checkpoints_opened")
        with self._reporting(step=None):
            self._folder = os.open(self.directory, os.O_RDONLY)
        self._newest = self.latest_step()
        handler = ocp.CompositeCheckpointHandler(
            state=ocp.PyTreeCheckpointHandler(),
            data=ocp.JsonCheckpointHandler(),
            metadata=ocp.JsonCheckpointHandler(),
        )
        self._orbax = ocp.AsyncCheckpointer(
            handler, async_options=ocp.AsyncOptions(post_finalization_callback=self._list_files)
        )

    def save(self, step: int, *, state: Any, data: dict[str, Any], metadata: dict[str, Any]) -> None:
        """Starts writing a checkpoint; returns once the arrays may be changed or donated.

        First waits for the previous save, if it is still going on. Does nothing if `step` is the last one saved.

        Args:
            step: updates made so far; the name of the checkpoint.
            state: pytree of jax arrays (random keys as key data).
            data: this process's data position, a JSON-able dict; those of all processes are merged.
            metadata: JSON-able, such as that of run_metadata.py; `step` is added.
        """
        self.wait()
        if step == self._saved:
            return
        if self._folder_was_removed():
            raise UserError(f"{self.directory}: step {step} cannot be saved: {_REMOVED}")
        path = step_path(self.directory, step)
        if path.exists():
            raise UserError(
                f"{path}: a checkpoint of this step is there already, written by an earlier run; use another --workdir "
                "or move the checkpoints after the restored step away"
            )
        merged: dict[str, Any] = {}
        for part in gather(data):
            _merge_into(merged, part)
        check_finite(getattr(state, "params", None), where=f"{path} is not saved: of the parameters,")
        self._checksums = array_checksums(state)
        with self._reporting(step=step):
            self._saving = step
            self._written = {"data": merged, "metadata": {"step": step, **metadata}}
            self._orbax.save(
                path,
                args=ocp.args.Composite(
                    state=ocp.args.PyTreeSave(state, save_args=save_args(state)),
                    **{item: ocp.args.JsonSave(value) for item, value in self._written.items()},
                ),
            )

    def check(self) -> None:
        """Raises UserError if the save in the background has already failed; never waits."""
        with self._reporting(step=self._saving):
            self._orbax.check_for_errors()

    def wait(self) -> None:
        """Waits until the save in the background is complete and removes checkpoints that need not stay."""
        if self._saving is None:
            return
        with self._reporting(step=self._saving):
            self._orbax.wait_until_finished()
            self._newest = self._saved = self._saving
            if self._folder_was_removed():
                raise FileNotFoundError(_REMOVED)
            self._saving = None
            if is_main_process():
                self._remove_old()

    def close(self) -> None:
        """Waits for the last save."""
        try:
            self.wait()
        finally:
            with suppress(OSError, ValueError, RuntimeError):  # repeats the error of a failed save, already reported
                self._orbax.close()
            os.close(self._folder)

    def latest_step(self) -> int | None:
        """Step of the newest complete checkpoint, or None."""
        steps = list_steps(self.directory)
        return steps[-1] if steps else None

    def restore(self, abstract_state: Any, *, step: int | None = None) -> Restored:
        """Reads the checkpoint of `step` (None = the newest) as `restore_checkpoint` does."""
        self.wait()
        return restore_checkpoint(find_checkpoint(self.directory, step=step), abstract_state=abstract_state)

    def __enter__(self) -> "Checkpointer":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
            return
        try:  # the first error is the one to show
            self.close()
        except UserError as second:
            error.add_note(str(second))

    def _remove_old(self) -> None:
        steps = list_steps(self.directory)
        keep_every = self._settings.keep_every
        for step in steps[: -self._settings.keep_last]:
            if not (keep_every and step % keep_every == 0):
                path = step_path(self.directory, step)
                doomed = path.with_name(path.name + _DELETED)
                os.replace(path, doomed)
                shutil.rmtree(doomed)

    def _remove_leftovers(self) -> None:
        for path in self.directory.iterdir():
            if path.name.endswith((_TEMPORARY, _DELETED)):
                shutil.rmtree(path)

    def _folder_was_removed(self) -> bool:
        """True also if the folder is there again: Orbax creates it anew, without the checkpoints that were in it."""
        try:
            same = os.path.samestat(os.stat(self.directory), os.fstat(self._folder))
        except OSError:
            return True
        return not same or (self._newest is not None and not step_path(self.directory, self._newest).is_dir())

    def _list_files(self) -> None:
        """Runs in the background, in one process, when all files are written and before the rename."""
        assert self._saving is not None
        final = step_path(self.directory, self._saving)
        temporary = final.with_name(final.name + _TEMPORARY)
        for item, value in self._written.items():
            if json.loads((temporary / item / JSON_FILE).read_bytes()) != json.loads(json.dumps(value)):
                raise OSError(f"{temporary / item}: is not what was to be written")
        # Orbax keeps its own bookkeeping, which it may still change, beside the items.
        items = [path for item in ITEMS for path in sorted((temporary / item).rglob("*")) if path.is_file()]
        write_list(temporary, names=[path.relative_to(temporary).as_posix() for path in items], arrays=self._checksums)

    @contextmanager
    def _reporting(self, *, step: int | None) -> Iterator[None]:
        """Turns errors of the disk into one line, and gives the space of a failed save back."""
        try:
            yield
        except UserError:
            raise
        except (OSError, ValueError, RuntimeError) as error:
            self._saving = None
            # Orbax drops what it had still planned to write.
            warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
            what = "the checkpoint folder cannot be used" if step is None else f"saving step {step} failed"
            if step is not None and self._folder_was_removed():
                raise UserError(f"{self.directory}: {what}: {_REMOVED}") from error
            if is_main_process() and self.directory.is_dir():
                with suppress(OSError):  # other writers of Orbax may still add files; the next start removes them
                    self._remove_leftovers()
            latest = "none" if self._newest is None else f"step {self._newest}"
            raise UserError(
                f"{self.directory}: {what}: {_reason(error)}; check the disk and run the same command again to resume "
                f"(last complete checkpoint: {latest})"
            ) from error


def _merge_into(merged: dict[str, Any], part: dict[str, Any]) -> None:
    for key, value in part.items():
        if isinstance(value, dict) and isinstance(merged.get(key), dict):
            _merge_into(merged[key], value)
        elif merged.setdefault(key, value) != value:
            raise ValueError(f"processes disagree on the data position {key!r}: {merged[key]!r} and {value!r}")


def _reason(error: BaseException) -> str:
    """The reason of an error on one line, at most 200 characters; tensorstore's messages have many lines."""
    text = " ".join(str(error).split()) or type(error).__name__
    for known in ("No space left on device", "File too large", "Permission denied", "Read-only file system"):
        if known in text:
            return known.lower()
    return text if len(text) <= 200 else text[:197] + "..."
