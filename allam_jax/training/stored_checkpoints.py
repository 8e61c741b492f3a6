"""Checkpoints on disk: which there are, whether they are whole, and what is in them (`checkpoints.py` writes them)."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp
from absl import logging

from allam_jax.checksums import FileList
from allam_jax.errors import UserError
from allam_jax.files import check_shape
from allam_jax.model.llama import LORA
from allam_jax.parallel.distributed import broadcast, is_main_process
from allam_jax.parallel.sharding import path_name
from allam_jax.weights.array_checksums import check_arrays, check_finite
from allam_jax.weights.directory import as_dtype
from allam_jax.weights.orbax_arrays import reading
from allam_jax.weights.orbax_logs import quiet_orbax

JSON_FILE = "metadata"  # Orbax's name for the JSON of an item, here of `data` and `metadata`
_OLD_JSON_FILE = "content.json"  # in checkpoints that a stock CheckpointManager does not open
_STATE = "state"
ITEMS = (_STATE, "data", "metadata")
_DAMAGED = "the checkpoint is damaged or was not copied completely"
_ASIDE = ".damaged"
_ASIDE_NAME = re.compile(rf"[0-9]+{re.escape(_ASIDE)}(?:\.[0-9]+)?")
_STEP_NAME = re.compile(r"[0-9]+")


class Restored(NamedTuple):
    """What `Checkpointer.restore` gives back."""

    state: Any  # like the abstract state
    data: dict[str, Any]  # of all processes together
    metadata: dict[str, Any]


def restore_checkpoint(path: Path, *, abstract_state: Any, partial: bool = False) -> Restored:
    """Reads the checkpoint directory `path` onto any mesh.

    Args:
        path: of one checkpoint; see `find_checkpoint`.
        abstract_state: pytree of `jax.ShapeDtypeStruct` with shardings; decides where every array goes.
        partial: the checkpoint may hold more arrays, which are not read.

    Raises:
        DamagedCheckpoint: something is not as it was saved.
        UserError: the arrays have other names, shapes or dtypes.
    """
    with _damage_of(path):
        data, metadata = _item(path, "data"), _metadata(path)
    if problem := _misnamed(path, metadata):
        raise UserError(problem)
    return Restored(state=_restore_state(path, abstract_state, partial=partial), data=data, metadata=metadata)


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
                "--config.checkpoint.skip_damaged=True, which moves damaged ones aside, or branch from it in another "
                "--workdir"
            )
    return "there is no other whole one beside it: copy the checkpoint again, or use another run's"


def checkpoint_damages(path: Path) -> Iterator[str]:
    """What is damaged in the checkpoint directory `path`: files, by their bytes."""
    try:
        files = FileList.read(path, remedy=_DAMAGED)
    except UserError as error:
        yield str(error)
        return
    found = False
    for damage in files.damages(reads=_is_item):
        found = True
        yield str(damage)
    if found:
        return
    try:
        problem = _misnamed(path, _metadata(path))
    except UserError as error:
        problem = str(error)
    if problem:
        yield problem


def _misnamed(path: Path, metadata: dict[str, Any]) -> str:
    """What is wrong with the name of a checkpoint: a number that is not its step, after `mv` or by a link."""
    named = _STEP_NAME.fullmatch(path.name)
    if named is None or int(path.name) == metadata["step"]:
        return ""
    own = step_path(path.parent, metadata["step"])
    remedy = "remove it" if own.is_dir() else f"call it {own.name} again"
    return f"{path}: holds step {metadata['step']}; {remedy}"


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
            aside = _free_name(path.with_name(f"{path.name}{_ASIDE}"))
            os.replace(path, aside)
            logging.error("%s; checkpoint.skip_damaged: moved to %s, going on from an earlier one", damage, aside)
    if problem := broadcast(problem):
        raise UserError(f"{problem}; no checkpoint is whole, so the run cannot go on: copy one again, or start anew")


def is_aside(name: str) -> bool:
    """Whether a folder of this name is a checkpoint that `move_damaged_aside` has renamed."""
    return bool(_ASIDE_NAME.fullmatch(name))


def _free_name(path: Path) -> Path:
    """The path, or the first of PATH.2, PATH.3, ... that nothing has yet."""
    free, number = path, 1
    while free.exists():
        number += 1
        free = path.with_name(f"{path.name}.{number}")
    return free


def restore_params(path: Path, *, abstract_params: Any, param_dtype: str | None = None) -> Any:
    """Reads only the parameters of the checkpoint directory `path`, onto any mesh, as they are stored or `param_dtype`.

    The dtypes of `abstract_params` do not matter.
    """
    params = _restore_state(path, {"params": abstract_params}, partial=True, any_dtype=True)["params"]
    check_finite(params, where=f"{path / _STATE}: of the parameters,")
    return as_dtype(params, param_dtype)


def stored_adapters(path: Path) -> dict[str, Any]:
    """The low-rank adapters in the checkpoint directory `path`: their description by Orbax, or {}."""
    return _checked_state(path, {}, partial=True, any_dtype=True)[1].get("params", {}).get(LORA, {})


def params_folder(path: Path, *, abstract_params: Any) -> Path:
    """Where in the checkpoint directory `path` Orbax has the state, and in it the parameters under the key `params`.

    All of its files are read and compared with their hashes.

    Raises:
        UserError: files are damaged, or the parameters have other names or shapes than `abstract_params`.
    """
    if damage := next(checkpoint_damages(path), None):
        raise DamagedCheckpoint(path, damage)
    return _checked_state(path, {"params": abstract_params}, partial=True, any_dtype=True)[0]


def read_metadata(path: Path) -> dict[str, Any]:
    """The metadata of the checkpoint directory `path`."""
    with _damage_of(path):
        return _metadata(path)


def _metadata(path: Path) -> dict[str, Any]:
    found = _item(path, "metadata")
    keys = {"step": int} | dict.fromkeys({"config", "tokens_by_source"} & found.keys(), dict)
    check_shape(found, kind=dict, keys=keys, where=f"{path / 'metadata'}:")
    return found


def _item(path: Path, name: str) -> dict[str, Any]:
    """The JSON item of a checkpoint; UserError if it is damaged."""
    files = FileList.read(path, remedy=_DAMAGED)
    old = f"{name}/{_OLD_JSON_FILE}"
    return files.read_json(old if old in files.files else f"{name}/{JSON_FILE}", remedy=_DAMAGED)


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
    return name.split("/")[0] in ITEMS


def list_steps(directory: Path) -> list[int]:
    """Steps of the complete checkpoints in `directory`, ascending; [] if there is no such directory."""
    if not Path(directory).is_dir():
        return []
    return sorted({int(p.name) for p in Path(directory).iterdir() if _STEP_NAME.fullmatch(p.name) and p.is_dir()})


def step_path(directory: Path, step: int) -> Path:
    """Where the checkpoint of `step` lies, or will: its name is the step, with zeros in front in old runs."""
    old = Path(directory) / f"{step:08d}"
    return old if old.is_dir() else Path(directory) / str(step)


def is_checkpoint(path: Path) -> bool:
    """Whether `path` is itself the directory of a complete checkpoint."""
    return any((Path(path) / "metadata" / name).is_file() for name in (JSON_FILE, _OLD_JSON_FILE))


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


def _restore_state(path: Path, abstract: Any, *, partial: bool, any_dtype: bool = False) -> Any:
    folder, stored, files = _checked_state(path, abstract, partial=partial, any_dtype=any_dtype)
    if any_dtype:  # as they are stored, because their checksums are those of the stored values
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
        if not files.has_hashes:
            logging.warning("%s: written before there were checksums; damage inside its files goes unnoticed", path)
        check_arrays(restored, files.arrays, folder=folder, remedy=_DAMAGED)
    return restored


def _checked_state(path: Path, abstract: Any, *, partial: bool, any_dtype: bool) -> tuple[Path, Any, FileList]:
    """The folder of the state, its description and the list of files; UserError if it is cut or unlike `abstract`."""
    quiet_orbax()
    folder = path / _STATE
    with _damage_of(path):
        files = FileList.read(path, remedy=_DAMAGED)
        files.check(reads=_is_item, remedy=_DAMAGED)
        with reading(f"{folder}: this checkpoint", remedy=_DAMAGED):
            stored = ocp.PyTreeCheckpointHandler().metadata(folder).tree
    _check_matches(stored, abstract, path=folder, partial=partial, any_dtype=any_dtype)
    return folder, stored, files


def _check_matches(stored: Any, abstract: Any, *, path: Path, partial: bool, any_dtype: bool) -> None:
    """UserError at the first array whose name, shape or (unless any_dtype) dtype is not that of the checkpoint.

    A partial state may lack arrays of the checkpoint.
    """
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
        if not any_dtype and have[name].dtype != leaf.dtype:
            raise UserError(
                f"{path}: {name} is {have[name].dtype}, but the config makes it {leaf.dtype}; set "
                f"{_key_of_dtype(name)} to {have[name].dtype}, or start anew from these weights in another --workdir"
            )
    for name in have:
        if not partial and name not in want:
            raise UserError(f"{path}: holds an array {name} that this model and optimizer do not have")


def _key_of_dtype(name: str) -> str:
    return "config.optimizer.first_moment_dtype" if name.startswith("optimizer/") else "config.param_dtype"


def _reason_of_shape(name: str) -> str:
    if name.rpartition("/")[2] in ("losses_W", "grad_norms_W"):
        return "it is the memory of the guard: set guard.window to what it was"
    return "the checkpoint is of another model or vocabulary"
