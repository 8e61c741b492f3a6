"""Recipes: stages in order, each in a directory of its own; finished ones are skipped.

The fingerprint of a stage is a hash of its config and of the fingerprints of the stages that it reads. The stage lies
in `WORKDIR/NAME`; if it is finished there with another config or other inputs, the recipe is refused. With a store it
lies in `STORE/NAME-FINGERPRINT`, with a link in the workdir: recipes that have the same stage share it. The first one
computes it, and the others wait.
"""

import contextlib
import dataclasses
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import logging
from ml_collections import ConfigDict

from allam_jax import files
from allam_jax.checksums import read_listed, write_listed
from allam_jax.config import CHECKPOINTS_FOLDER, check_own, differences, resolve_stages
from allam_jax.errors import UserError
from allam_jax.parallel.distributed import barrier, broadcast, is_main_process
from allam_jax.tasks.inputs_of_task import check_named, inputs_of
from allam_jax.tasks.registry import changed_settings

RESULT_FILE = "result.json"
_MOST_SHOWN = 4  # keys of a changed config
_BEGUN_FILE = ".stage.json"  # of a stage that may not have finished: its config and fingerprint
_SWEEP_FILE = "recipe.json"  # in a run of a sweep
_FINGERPRINT_DIGITS = 12  # in the name of a directory: enough for billions of stages


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stage of a recipe.

    The fingerprint is the hex SHA-256 of the values that its task reads and that differ from defaults, and of the
    fingerprints of `uses`.
    """

    name: str
    config: ConfigDict  # as the recipe states it, with `@references`
    fingerprint: str
    uses: tuple[str, ...]  # the earlier stages that it reads directly

    def directory(self, *, workdir: Path, store: Path | None) -> Path:
        """Where it lies; see the module."""
        name = self.name if store is None else f"{self.name}-{self.fingerprint[:_FINGERPRINT_DIGITS]}"
        return files.child(workdir if store is None else store, name, what="config.stages")


def stages_of(config: ConfigDict) -> list[Stage]:
    """The stages of a recipe in order. UserError for a reference to a stage that does not come earlier."""
    stages: dict[str, Stage] = {}
    for name in config.stages:
        _, uses = resolve_stages(config.stage[name], stage_dirs={earlier: Path(earlier) for earlier in stages})
        own = changed_settings(config.stage[name])
        fingerprint = files.sha256_of_json([own, {used: stages[used].fingerprint for used in uses}])
        stages[name] = Stage(name, config.stage[name], fingerprint, tuple(uses))
    return list(stages.values())


def is_finished(directory: Path) -> bool:
    """Whether the stage in this directory has ended well."""
    return (directory / RESULT_FILE).is_file()


def read_result(directory: Path) -> dict[str, Any]:
    """What a finished stage has left: fingerprint, config, result and seconds; UserError if that is damaged."""
    record = read_listed(directory, RESULT_FILE, remedy="remove this file to run the stage again")
    keys: dict[str, type | tuple[type, ...]] = {"fingerprint": str, "config": dict, "result": dict}
    files.check_shape(record, kind=dict, keys=keys | {"seconds": (int, float)}, where=f"{directory / RESULT_FILE}:")
    return record


def run_recipe(
    config: ConfigDict,
    *,
    workdir: Path,
    only: Sequence[str] = (),
    store: Path | None = None,
    run_task: Callable[..., dict[str, Any]],
) -> dict[str, Any]:
    """Runs the stages that have not finished.

    Args:
        config: the recipe.
        workdir: holds a directory, or a link to one, for each stage.
        only: run these stages alone; empty runs all.
        store: where stages lie that recipes share; None keeps them in the workdir.
        run_task: called as `run_task(config, workdir=directory)` for each stage, in every process.

    Returns:
        The result of the last stage (of the last of `only`), and the seconds that all of them took.

    Raises:
        UserError: a stage is unknown, has been finished with another config, or needs one that has not finished.
    """
    if unknown := [name for name in only if name not in config.stages]:
        raise UserError(f"--stage {unknown[0]}: the recipe's stages are {', '.join(config.stages)}")
    check_own_recipe(workdir, config.stages)
    stages = stages_of(config)
    directories = {stage.name: stage.directory(workdir=workdir, store=store) for stage in stages}
    result: dict[str, Any] = {}
    seconds = 0.0
    end = 1 + max((config.stages.index(name) for name in only), default=len(stages) - 1)
    to_run = [stage for stage in stages[:end] if not only or stage.name in only]
    _check_paths(to_run, directories=directories, made=[workdir, *([store] if store else [])])
    for number, stage in enumerate(stages[:end], start=1):
        directory = directories[stage.name]
        title = f"stage {number}/{len(stages)} {stage.name}"
        chosen = not only or stage.name in only
        with contextlib.ExitStack() as stack:
            if store is not None and chosen and is_main_process():
                _wait_for_turn(stack, directory, title=title)
            if broadcast(is_finished(directory)):
                record = read_result(directory)
                _check_unchanged(record, stage=stage, directory=directory)
                _check_inputs(record, stage=stage, directory=directory)
                logging.info("%s: already finished, skipped", title)
            elif chosen:
                missing = [used for used in stage.uses if not is_finished(directories[used])]
                if missing:
                    raise UserError(
                        f"--stage {stage.name} needs stage {missing[0]!r}, which has not finished in {workdir}"
                    )
                logging.info("%s (%s)", title, stage.config.task)
                resolved, _ = resolve_stages(stage.config, stage_dirs=directories)
                record = _run(stage, resolved, directory=directory, run_task=run_task)
            else:
                continue
        if store is not None and is_main_process():
            link_stage(workdir / stage.name, directory)
        seconds += record["seconds"]
        if chosen:
            result = record["result"]
    return result if only else result | {"seconds": round(seconds, 1)}


def check_own_recipe(workdir: Path, names: Sequence[str]) -> None:
    """UserError if something is in a recipe's workdir, but neither a stage nor what a task or sweep wrote."""
    there = {path.name for path in workdir.iterdir()} if workdir.is_dir() else set()
    if not there & {*names, _SWEEP_FILE}:
        check_own(workdir, task="recipe")


def _check_paths(stages: Sequence[Stage], *, directories: Mapping[str, Path], made: Sequence[Path]) -> None:
    """UserError if a stage that has not finished names a path at which nothing is: found before the first one works."""
    problem, opened = "", set[Path]()
    if is_main_process():
        for stage in stages:
            if not is_finished(directories[stage.name]):
                try:
                    check_named(stage.config, made=made, opened=opened)
                except UserError as error:
                    problem = f"stage {stage.name}: {error}"
                    break
    if problem := broadcast(problem):
        raise UserError(problem)


def _run(
    stage: Stage, resolved: ConfigDict, *, directory: Path, run_task: Callable[..., dict[str, Any]]
) -> dict[str, Any]:
    started = time.monotonic()
    identity = {"fingerprint": stage.fingerprint, "config": changed_settings(stage.config)}
    before = _check_begun(identity, stage=stage, directory=directory)

    def seconds() -> float:
        return round(before + time.monotonic() - started, 1)

    inputs = inputs_of(stage.config) if is_main_process() else {}
    try:
        record = identity | {"result": run_task(resolved, workdir=directory), "seconds": seconds()}
    except BaseException:  # stopped, or failed: the next start counts these seconds too
        if is_main_process() and directory.is_dir():
            with contextlib.suppress(OSError):  # the disk may be what has failed
                files.write_json(directory / _BEGUN_FILE, identity | {"seconds": seconds()})
        raise
    if is_main_process():
        read_files = {key: found.record() for key, found in inputs.items()}
        record["inputs"] = read_files
        for key, read in read_files.items():
            if unclear := [name for name, (*_, hash_) in read.items() if not hash_]:
                logging.warning("%s: changed while stage %s read it (config.%s)", unclear[0], stage.name, key)
        _write_result(directory, record)
    barrier(f"finished {stage.name}")
    return record


def _write_result(directory: Path, record: dict[str, Any]) -> None:
    write_listed(directory, {RESULT_FILE: f"{files.json_text(record, indent=2)}\n".encode()})


def _check_begun(identity: dict[str, Any], *, stage: Stage, directory: Path) -> float:
    """The seconds that earlier starts took, from whose checkpoints the stage goes on. UserError if they are of another
    config.

    Without any checkpoint it begins anew, so that a config with a mistake can be mended. Other tasks keep no state that
    a later start would take without looking.
    """
    begun, path = identity, directory / _BEGUN_FILE
    if is_main_process():
        if path.is_file() and any((directory / CHECKPOINTS_FOLDER).glob("[0-9]*")):
            begun = files.read_json(path, keys={"fingerprint": str, "config": dict})
        else:
            files.write_json(path, identity)
    begun = broadcast(begun)
    _check_unchanged(begun, stage=stage, directory=directory, state="begun")
    return begun.get("seconds", 0.0)


def _check_unchanged(record: dict[str, Any], *, stage: Stage, directory: Path, state: str = "finished") -> None:
    if record["fingerprint"] == stage.fingerprint:
        return
    changed = differences(record["config"], changed_settings(stage.config)) or ["an earlier stage it reads"]
    more = f"; and {len(changed) - _MOST_SHOWN} more" if len(changed) > _MOST_SHOWN else ""
    raise UserError(
        f"{directory} was {state} with another config ({'; '.join(changed[:_MOST_SHOWN])}{more}): "
        "use a new --workdir, or remove this directory and those of later stages to run them again"
    )


def _check_inputs(record: dict[str, Any], *, stage: Stage, directory: Path) -> None:
    """UserError where the files that the stage has read are others now. Only the first process looks."""
    changed: list[str] = []
    if is_main_process() and "inputs" in record:  # stages of earlier versions do not know theirs
        read, touched = record["inputs"], False
        for key, found in inputs_of(stage.config).items():
            lines, only_times = found.changed(read.get(key, {}))
            changed += [f"config.{key}: {line}" for line in lines]
            if only_times:
                read[key], touched = found.record(), True
        if touched and not changed:  # so that the next start need not read them again
            _write_result(directory, record)
    changed = broadcast(changed)
    if changed:
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        raise UserError(
            f"{directory} was finished with other inputs ({'; '.join(changed[:3])}{more}): use a new --workdir, or "
            "remove this directory and those of later stages to run them again"
        )


def _wait_for_turn(stack: contextlib.ExitStack, directory: Path, *, title: str) -> None:
    """Holds, until the stack is closed, the lock on this stage of the store: no other run is at work on it."""
    busy = f"{title}: waiting for another run that is at work on it"
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        stack.enter_context(files.lock(directory.with_name(f".{directory.name}.lock"), busy=busy, wait=True))
    except OSError as error:
        raise UserError(f"--store {directory.parent}: cannot write there ({error.strerror})") from None


def link_stage(link: Path, directory: Path) -> None:
    """Makes `link` point to a stage of the store, in place of an earlier link. UserError where a directory is there."""
    if link.is_symlink() and link.resolve() == directory.resolve():
        return
    if link.is_dir() and not link.is_symlink():
        raise UserError(f"{link}: a stage made without --store; use another --workdir, or remove it")
    link.parent.mkdir(parents=True, exist_ok=True)
    temporary = link.with_name(f".{link.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(os.path.relpath(directory.resolve(), link.parent.resolve()), target_is_directory=True)
    os.replace(temporary, link)
