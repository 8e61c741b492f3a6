"""Checkpoints hold all that a run needs to continue. They are written in the background and are complete or absent.

A checkpoint is a directory named by its step (`00001200`), with three items: `state` (arrays, Orbax), `data` (JSON, the
position in every document stream) and `metadata` (JSON: what made it). Orbax writes to a temporary name and renames it
when everything is on disk, so a directory with a step's name is complete, whatever killed the run. Before a checkpoint
is deleted it is renamed. The next run removes the leftovers of both. `files.json` lists every file with its size and
hash, and has the checksums of the arrays as they were in memory: reading a checkpoint that is not what was saved fails
and names the file or the array.

On many hosts all processes must see the same directory and call the same methods at the same steps.
"""

import json
import os
import re
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp
from absl import logging

from allam_jax.checksums import FileList, write_list
from allam_jax.errors import UserError
from allam_jax.parallel.distributed import barrier, broadcast, gather, is_main_process
from allam_jax.parallel.sharding import path_name
from allam_jax.training.settings import CheckpointSettings
from allam_jax.weights.array_checksums import ArrayChecksums, array_checksums, check_arrays, check_finite
from allam_jax.weights.directory import as_dtype
from allam_jax.weights.orbax_arrays import reading, save_args
from allam_jax.weights.orbax_logs import quiet_orbax

_TEMPORARY = ".orbax-checkpoint-tmp"
_DELETED = ".deleted"
_JSON_FILE = "content.json"  # of the items `data` and `metadata`; Orbax wants one name for both
_STATE = "state"
_ITEMS = (_STATE, "data", "metadata")
_DAMAGED = "the checkpoint is damaged or was not copied completely"
_ASIDE = ".damaged"
_REMOVED = (
    "the checkpoint folder has been removed or emptied during the run; put it back and run the same command again to "
    "resume, or start anew with another --workdir"
)


class Restored(NamedTuple):
    """What `Checkpointer.restore` gives back."""

    state: Any  # like the abstract state
    data: dict[str, Any]  # of all processes together
    metadata: dict[str, Any]


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
            data=ocp.JsonCheckpointHandler(_JSON_FILE),
            metadata=ocp.JsonCheckpointHandler(_JSON_FILE),
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
            if json.loads((temporary / item / _JSON_FILE).read_bytes()) != json.loads(json.dumps(value)):
                raise OSError(f"{temporary / item}: is not what was to be written")
        # Orbax keeps its own bookkeeping, which it may still change, beside the items.
        items = [path for item in _ITEMS for path in sorted((temporary / item).rglob("*")) if path.is_file()]
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
                self._remove_leftovers()
            latest = "none" if self._newest is None else f"step {self._newest}"
            raise UserError(
                f"{self.directory}: {what}: {_reason(error)}; check the disk and run the same command again to resume "
                f"(last complete checkpoint: {latest})"
            ) from error


def restore_checkpoint(path: Path, *, abstract_state: Any) -> Restored:
    """Reads the checkpoint directory `path` onto any mesh.

    Args:
        path: of one checkpoint; see `find_checkpoint`.
        abstract_state: pytree of `jax.ShapeDtypeStruct` with shardings; decides where every array goes.

    Raises:
        DamagedCheckpoint: something is not as it was saved.
        UserError: the arrays have other names, shapes or dtypes.
    """
    data, metadata = (_read_item(path, item) for item in ("data", "metadata"))
    return Restored(state=_restore_state(path, abstract_state, partial=False), data=data, metadata=metadata)


class DamagedCheckpoint(UserError):
    """A checkpoint that is not what was saved; the message names the newest whole one beside it."""

    def __init__(self, path: Path, problem: str):
        super().__init__(f"{problem}; {_remedy(path)}")
        self.path = path


def _remedy(path: Path) -> str:
    """How to go on without the checkpoint `path`; looks for the newest whole one beside it."""
    for step in reversed(list_steps(path.parent)):
        other = step_path(path.parent, step)
        if other != path and not any(checkpoint_damages(other)):
            return (
                f"the newest whole one is {other}: to go on from it, run the same command again with "
                "--config.checkpoint.skip_damaged=True, which moves damaged ones aside, or give its path"
            )
    return "there is no other whole one beside it: copy the checkpoint again, or use another run's"


def checkpoint_damages(path: Path) -> Iterator[str]:
    """What is damaged in the checkpoint directory `path`: files, by their bytes."""
    try:
        files = FileList.read(path, remedy=_DAMAGED)
    except UserError as error:
        yield str(error)
        return
    yield from map(str, files.damages(reads=_is_item))


def move_damaged_aside(directory: Path) -> None:
    """Renames damaged checkpoints that are newer than the newest whole one in `directory`; logs it loudly.

    All processes must call it; the first one looks and renames. UserError if none is whole.
    """
    problem = ""
    if is_main_process():
        damaged = []
        for step in reversed(list_steps(directory)):
            damage = next(checkpoint_damages(step_path(directory, step)), None)
            if damage is None:
                break
            damaged.append((step_path(directory, step), damage))
        else:
            problem = damaged[-1][1] if damaged else ""
        for path, damage in [] if problem else damaged:
            aside = path.with_name(f"{path.name}{_ASIDE}")
            os.replace(path, aside)
            logging.error("%s; checkpoint.skip_damaged: moved to %s, going on from an earlier one", damage, aside)
    if problem := broadcast(problem):
        raise UserError(f"{problem}; no checkpoint is whole, so the run cannot go on: copy one again, or start anew")


def restore_params(path: Path, *, abstract_params: Any, param_dtype: str | None = None) -> Any:
    """Reads only the parameters of the checkpoint directory `path`, onto any mesh, as they are stored or `param_dtype`.

    The dtypes of `abstract_params` do not matter.
    """
    params = _restore_state(path, {"params": abstract_params}, partial=True)["params"]
    check_finite(params, where=f"{path / _STATE}: of the parameters,")
    return as_dtype(params, param_dtype)


def params_folder(path: Path, *, abstract_params: Any) -> Path:
    """Where in the checkpoint directory `path` Orbax has the state, and in it the parameters under the key `params`.

    All of its files are read and compared with their hashes.

    Raises:
        UserError: files are damaged, or the parameters have other names or shapes than `abstract_params`.
    """
    if damage := next(checkpoint_damages(path), None):
        raise DamagedCheckpoint(path, damage)
    return _checked_state(path, {"params": abstract_params}, partial=True)[0]


def read_metadata(path: Path) -> dict[str, Any]:
    """The metadata of the checkpoint directory `path`."""
    return _read_item(path, "metadata")


def _read_item(path: Path, item: str) -> dict[str, Any]:
    with _damage_of(path):
        return FileList.read(path, remedy=_DAMAGED).read_json(f"{item}/{_JSON_FILE}", remedy=_DAMAGED)


@contextmanager
def _damage_of(path: Path) -> Iterator[None]:
    """Errors of reading a checkpoint, with the newest whole one."""
    try:
        yield
    except DamagedCheckpoint:
        raise
    except UserError as error:
        raise DamagedCheckpoint(path, str(error)) from error


def _is_item(name: str) -> bool:
    return name.split("/")[0] in _ITEMS


def list_steps(directory: Path) -> list[int]:
    """Steps of the complete checkpoints in `directory`, ascending; [] if there is no such directory."""
    if not Path(directory).is_dir():
        return []
    return sorted(int(p.name) for p in Path(directory).iterdir() if re.fullmatch(r"\d{8,}", p.name) and p.is_dir())


def step_path(directory: Path, step: int) -> Path:
    """Where the checkpoint of `step` lies."""
    return Path(directory) / f"{step:08d}"


def is_checkpoint(path: Path) -> bool:
    """Whether `path` is itself the directory of a complete checkpoint."""
    return (Path(path) / "metadata" / _JSON_FILE).is_file()


def find_checkpoint(path: Path, *, step: int | None = None) -> Path:
    """The checkpoint directory meant by `path`: itself, or the one of `step` (None = the newest) inside it."""
    path = Path(path).absolute()
    if not path.is_dir():
        raise UserError(f"{path}: no such checkpoint folder")
    if is_checkpoint(path) and step is None:
        return path
    steps = list_steps(path)
    if not steps:
        raise UserError(f"{path}: holds no complete checkpoint")
    if step is not None and step not in steps:
        raise UserError(f"{path}: holds no checkpoint of step {step}; there are {', '.join(map(str, steps))}")
    return step_path(path, steps[-1] if step is None else step)


def _restore_state(path: Path, abstract: Any, *, partial: bool) -> Any:
    folder, stored = _checked_state(path, abstract, partial=partial)
    if partial:  # as they are stored, because their checksums are those of the stored values
        dtypes = {path_name(keys): leaf.dtype for keys, leaf in jax.tree_util.tree_leaves_with_path(stored)}
        abstract = jax.tree_util.tree_map_with_path(
            lambda keys, leaf: jax.ShapeDtypeStruct(leaf.shape, dtypes[path_name(keys)], sharding=leaf.sharding),
            abstract,
        )
    restore_args = ocp.checkpoint_utils.construct_restore_args(abstract)
    args = ocp.args.PyTreeRestore(abstract, restore_args=restore_args, partial_restore=partial)
    with _damage_of(path):
        with reading(f"{folder}: this checkpoint", remedy=_DAMAGED):
            restored = ocp.PyTreeCheckpointHandler().restore(folder, args=args)
        files = FileList.read(path, remedy=_DAMAGED)
        if not files.has_hashes:
            logging.warning("%s: written before there were checksums; damage inside its files goes unnoticed", path)
        check_arrays(restored, files.arrays, folder=folder, remedy=_DAMAGED)
    return restored


def _checked_state(path: Path, abstract: Any, *, partial: bool) -> tuple[Path, Any]:
    """The folder of the state and its description; UserError if files are missing or it is not like `abstract`."""
    quiet_orbax()
    folder = path / _STATE
    with _damage_of(path):
        FileList.read(path, remedy=_DAMAGED).check(reads=_is_item, remedy=_DAMAGED)
        with reading(f"{folder}: this checkpoint", remedy=_DAMAGED):
            stored = ocp.PyTreeCheckpointHandler().metadata(folder).tree
    _check_matches(stored, abstract, path=folder, partial=partial)
    return folder, stored


def _check_matches(stored: Any, abstract: Any, *, path: Path, partial: bool) -> None:
    """UserError at the first array whose name, shape or (unless partial) dtype is not that of the checkpoint."""
    have, want = (
        {path_name(keys): leaf for keys, leaf in jax.tree_util.tree_leaves_with_path(tree)}
        for tree in (stored, abstract)
    )
    for name, leaf in want.items():
        if name not in have:
            raise UserError(
                f"{path}: has no array {name}, which this model and optimizer need; check model.* of the config"
            )
        if tuple(have[name].shape) != tuple(leaf.shape):
            raise UserError(
                f"{path}: {name} has shape {tuple(have[name].shape)}, but the config makes it {tuple(leaf.shape)}; "
                + _reason_of_shape(name)
            )
        if not partial and have[name].dtype != leaf.dtype:
            raise UserError(f"{path}: {name} is {have[name].dtype}, but the config makes it {leaf.dtype}")
    for name in have:
        if not partial and name not in want:
            raise UserError(f"{path}: holds an array {name} that this model and optimizer do not have")


def _reason_of_shape(name: str) -> str:
    if name.rpartition("/")[2] in ("losses_W", "grad_norms_W"):
        return "it is the memory of the guard: set guard.window to what it was"
    return "the checkpoint is of another model or vocabulary"


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
