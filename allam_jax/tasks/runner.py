"""Dispatch: a config names a task, this calls it. Recipes run their stages in order (`recipe.py`)."""

import contextlib
import errno
import importlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from absl import logging
from ml_collections import ConfigDict

from allam_jax import interrupts
from allam_jax.checksums import FILE_LIST, write_listed
from allam_jax.config import CONFIG_FILE, check_own, save
from allam_jax.errors import UserError
from allam_jax.files import lock, sweep
from allam_jax.parallel.distributed import barrier, broadcast, is_main_process
from allam_jax.tasks.recipe import run_recipe
from allam_jax.tasks.registry import settings_of, task_named
from allam_jax.training.wandb_sink import check_wandb

# Glob, brace and URL syntax and the placeholders of TFDS, and what a line of a log or a script cannot hold.
_PATTERNS = set("[]*?{}\\") | set(map(chr, range(32))) | {"\x7f"}
_OF_THE_DISK = {
    getattr(errno, name) for name in ("ENOSPC", "EDQUOT", "EFBIG", "EROFS", "EACCES", "EPERM", "EIO", "ESTALE")
}
_OF_THE_PATH = {errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENOENT, errno.EINVAL, errno.EMFILE}


def run(config: ConfigDict, *, workdir: Path, only: Sequence[str] = (), store: Path | None = None) -> dict[str, Any]:
    """Runs a config's task in `workdir` and returns its result.

    Args:
        config: of a task, or a recipe.
        workdir: where it writes.
        only: stages of a recipe to run alone; empty runs all.
        store: where stages of recipes lie that others may share (see `recipe.py`); None: in the workdir.

    Raises:
        UserError: the task or a stage is unknown, or a value cannot be used.
    """
    with _disk_errors(workdir), _unserved_attention():
        check(config)
        if is_main_process():
            check_trackers(config)
        if config.task == "recipe":
            return run_recipe(config, workdir=workdir, only=only, store=store, run_task=_run_task)
        if only:
            raise UserError(f"--stage {only[0]}: task {config.task!r} has no stages; only recipes have")
        return _run_task(config, workdir=workdir)


def check(config: ConfigDict) -> None:
    """UserError for a value that its task cannot use, in any stage of a recipe, before the first stage starts."""
    if config.task == "recipe":
        if "stages" not in config:
            raise UserError(
                "config.task = 'recipe': this config is of one task and has no stages; leave config.task out"
            )
        for name in config.stages:
            try:
                check(config.stage[name])
            except UserError as error:
                raise UserError(f"stage {name}: {error}") from None
        return
    settings_of(config)


def sweep_workdir(workdir: Path) -> None:
    """Removes what killed tasks have left in a workdir that this process alone writes in, but not in others inside."""
    sweep(workdir)
    for path in workdir.iterdir():
        if path.is_dir() and not path.is_symlink() and not (path / CONFIG_FILE).exists():
            sweep(path)


def check_path(path: Path) -> None:
    """UserError for a path that Orbax, TensorStore or TFDS would read as a pattern, or that is no text."""
    try:
        text = str(path).encode().decode()
    except UnicodeEncodeError:
        raise UserError(f"--workdir {str(path)!r}: is not UTF-8; give a path of text") from None
    if found := _PATTERNS & set(text):
        listed = " ".join(sorted(map(repr, found)))
        raise UserError(
            f"--workdir {text!r}: contains {listed}, which libraries for checkpoints and datasets take as a pattern; "
            "give another path"
        )


def check_trackers(config: ConfigDict) -> None:
    """UserError for a tracker that a stage asks for and that cannot be reached; before the first stage starts."""
    if config.task == "recipe":
        for name in config.stages:
            check_trackers(config.stage[name])
    elif "metrics" in config and config.metrics.wandb_project:
        check_wandb(config.metrics.wandb_project)


def _run_task(config: ConfigDict, *, workdir: Path) -> dict[str, Any]:
    check_path(workdir)
    check_own(workdir, task=config.task)
    task = task_named(config.task)
    name = task.module or f"allam_jax.tasks.{config.task}"
    module = importlib.import_module(name)  # only now: a tokenizer task does not wait for JAX
    before = None
    with contextlib.ExitStack() as stack:
        if is_main_process():
            try:
                workdir.mkdir(parents=True, exist_ok=True)
                busy = f"--workdir {workdir}: another run is at work there; let it end, or use another one"
                stack.enter_context(lock(workdir, busy=busy, wait=False))
                sweep_workdir(workdir)
                path = workdir / CONFIG_FILE
                before = path.read_bytes() if path.is_file() else None
                for line in save(config, workdir=workdir):
                    logging.info("config changed since the last start: %s", line)
            except OSError as error:
                raise UserError(f"--workdir {workdir}: cannot write there ({error.strerror})") from None
        barrier(f"started {workdir}")
        # Work on files alone is done once, while the other processes wait.
        takes_part = task.on_devices or is_main_process()
        interrupts.raise_pending()
        stack.enter_context(_config_of_what_is_there(workdir, before))
        return broadcast(module.run(settings_of(config), workdir) if takes_part else {})


@contextlib.contextmanager
def _config_of_what_is_there(workdir: Path, before: bytes | None) -> Iterator[None]:
    """Puts `before`, the earlier config.json, back if a start is refused: it made what lies in the workdir."""
    if before is None:
        yield
        return
    saved = max((workdir / name).stat().st_mtime_ns for name in (CONFIG_FILE, FILE_LIST))
    try:
        yield
    except UserError:
        files = (path for path in workdir.rglob("*") if path.is_file())
        if all(path.stat().st_mtime_ns <= saved for path in files):  # nothing was written with the new config
            write_listed(workdir, {CONFIG_FILE: before})
        raise


@contextlib.contextmanager
def _unserved_attention() -> Iterator[None]:
    """The kernels know no errors of ours: what none of them can serve is told as one line."""
    try:
        yield
    except NotImplementedError as error:
        if not str(error).startswith("no attention backend"):
            raise
        raise UserError(f"config.compute.attention: {error}") from None


@contextlib.contextmanager
def _disk_errors(workdir: Path) -> Iterator[None]:
    """Turns errors of the disk, and too little memory, into a UserError, wherever they happen."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:  # JAX raises a RuntimeError
        if isinstance(error, RuntimeError) and not str(error).startswith("RESOURCE_EXHAUSTED"):
            raise
        said = f" ({' '.join(str(error).split())[:200]})" if str(error) else ""
        raise UserError(
            f"not enough memory for what the config asks{said}; choose smaller sizes, or a larger machine"
        ) from error
    except OSError as error:
        if error.errno is not None and error.errno in _OF_THE_DISK:
            remedy = "check the disk and its permissions, and run the same command again to go on"
        elif error.errno is not None and error.errno in _OF_THE_PATH and error.filename is not None:
            own = Path(str(error.filename)).is_relative_to(workdir)
            remedy = f"check --workdir {workdir}" if own else "check this path in the config"
        elif error.errno == errno.EEXIST:  # where a directory is made
            remedy = "a directory belongs there: move away what is in its place, such as a link that leads nowhere"
        else:
            raise
        # Of a copy, the second name is that of the target.
        place = error.filename2 or error.filename or workdir
        raise UserError(f"{place}: {os.strerror(error.errno).lower()}; {remedy}") from error
