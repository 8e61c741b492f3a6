"""Dispatch: a config names a task, this calls it. Recipes run their stages in order and skip finished ones."""

import contextlib
import errno
import fcntl
import importlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from absl import logging
from ml_collections import ConfigDict

from allam_jax import files, interrupts
from allam_jax.config import check_values, differences, resolve_stages, save, to_dict
from allam_jax.errors import UserError
from allam_jax.parallel.distributed import barrier, broadcast, is_main_process

# Modules are imported when their task runs: a tokenizer task does not wait for JAX.
TASKS = {
    "corpus": "allam_jax.tasks.corpus",
    "tokenizer": "allam_jax.tasks.tokenizer",
    "merge_tokenizer": "allam_jax.tasks.merge_tokenizer",
    "train": "allam_jax.tasks.train",
    "expand": "allam_jax.tasks.expand",
    "evaluate": "allam_jax.tasks.evaluate",
    "generate": "allam_jax.tasks.generate",
    "export": "allam_jax.tasks.export",
    "plan": "allam_jax.tasks.plan",
    "expansion_report": "allam_jax.tasks.expansion_report",
}
ON_DEVICES = ("train", "expand", "evaluate", "generate", "export")  # all processes take part
RESULT_FILE = "result.json"

_OF_THE_DISK = {
    getattr(errno, name) for name in ("ENOSPC", "EDQUOT", "EFBIG", "EROFS", "EACCES", "EPERM", "EIO", "ESTALE")
}


def run(config: ConfigDict, *, workdir: Path, only_stage: str | None = None) -> dict[str, Any]:
    """Runs a config's task in `workdir` and returns its result; UserError for an unknown task or stage."""
    with _disk_errors(workdir):
        if config.task == "recipe":
            return _run_recipe(config, workdir=workdir, only_stage=only_stage)
        if only_stage is not None:
            raise UserError(f"--stage {only_stage}: task {config.task!r} has no stages; only recipes have")
        _check(config)
        return _run_task(config, workdir=workdir)


def _check(config: ConfigDict) -> None:
    if config.task not in TASKS:
        raise UserError(f"config.task = {config.task!r}: expected one of {', '.join(TASKS)} or recipe")
    check_values(config)


def _run_task(config: ConfigDict, *, workdir: Path) -> dict[str, Any]:
    if workdir.exists() and not workdir.is_dir():
        raise UserError(f"--workdir {workdir}: is a file, not a directory")
    module = importlib.import_module(TASKS[config.task])
    with contextlib.ExitStack() as stack:
        if is_main_process():
            try:
                workdir.mkdir(parents=True, exist_ok=True)
                stack.enter_context(_alone_in(workdir))
                for line in save(config, workdir=workdir):
                    logging.info("config changed since the last start: %s", line)
            except OSError as error:
                raise UserError(f"--workdir {workdir}: cannot write there ({error.strerror})") from None
        barrier(f"started {workdir}")
        # Work on files alone is done once, while the other processes wait.
        takes_part = config.task in ON_DEVICES or is_main_process()
        interrupts.raise_pending()
        return broadcast(module.run(config, workdir) if takes_part else {})


@contextlib.contextmanager
def _alone_in(workdir: Path) -> Iterator[None]:
    """Holds a lock on the directory, which ends with the process, however that ends."""
    descriptor = os.open(workdir, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise UserError(f"--workdir {workdir}: another run is at work there; let it end, or use another one") from None
    except OSError:
        logging.info("%s: this file system has no locks; let only one run write there", workdir)
    try:
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _disk_errors(workdir: Path) -> Iterator[None]:
    """What the disk refuses, wherever it happens, is the user's to fix."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.errno not in _OF_THE_DISK:
            raise
        raise UserError(
            f"{error.filename or workdir}: {os.strerror(error.errno).lower()}; see to the disk and its permissions, "
            "and run the same command again to go on"
        ) from error


def _run_recipe(config: ConfigDict, *, workdir: Path, only_stage: str | None) -> dict[str, Any]:
    if only_stage is not None and only_stage not in config.stages:
        raise UserError(f"--stage {only_stage}: the recipe's stages are {', '.join(config.stages)}")
    for name in config.stages:  # before the first one runs for an hour
        _check(config.stage[name])
    stage_dirs: dict[str, Path] = {}
    fingerprints: dict[str, str] = {}
    result: dict[str, Any] = {}
    seconds = 0.0
    for number, name in enumerate(config.stages, start=1):
        stage, uses = resolve_stages(config.stage[name], stage_dirs=stage_dirs)
        stage_dirs[name] = workdir / name
        # A stage is what its config says and what the stages it reads were.
        fingerprint = files.sha256_of_json([to_dict(config.stage[name]), {used: fingerprints[used] for used in uses}])
        fingerprints[name] = fingerprint
        finished = stage_dirs[name] / RESULT_FILE
        title = f"stage {number}/{len(config.stages)} {name}"
        if finished.exists():
            record = files.read_json(finished)
            _check_unchanged(record, config=config.stage[name], fingerprint=fingerprint, directory=stage_dirs[name])
            logging.info("%s: already finished, skipped", title)
            result = record["result"]
            seconds += record["seconds"]
        elif only_stage is None or only_stage == name:
            missing = [used for used in uses if not (stage_dirs[used] / RESULT_FILE).exists()]
            if missing:
                raise UserError(f"--stage {name} needs stage {missing[0]!r}, which has not finished in {workdir}")
            logging.info("%s (%s)", title, stage.task)
            started = time.monotonic()
            result = _run_task(stage, workdir=stage_dirs[name])
            record = {
                "fingerprint": fingerprint,
                "config": to_dict(config.stage[name]),
                "result": result,
                "seconds": round(time.monotonic() - started, 1),
            }
            if is_main_process():
                files.write_json(finished, record)
            barrier(f"finished {name}")
            seconds += record["seconds"]
        if name == only_stage:
            return result
    return result | {"seconds": round(seconds, 1)}


def _check_unchanged(record: dict, *, config: ConfigDict, fingerprint: str, directory: Path) -> None:
    if record["fingerprint"] == fingerprint:
        return
    changed = differences(record["config"], to_dict(config)) or ["an earlier stage it reads"]
    raise UserError(
        f"{directory} was finished with another config ({'; '.join(changed[:3])}): "
        "use a new --workdir, or remove this directory and those of later stages to run them again"
    )
