"""Writing a directory with all processes taking part, atomically; copying tokenizer files into it."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import jax
from jax.experimental import multihost_utils

from allam_jax.errors import UserError

# What a tokenizer may consist of, here and in transformers. Anything else beside it is not copied along.
TOKENIZER_FILES = (
    "tokenizer.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "vocab.json",
    "merges.txt",
)


def is_writer() -> bool:
    """Whether this process writes the files that only one may write."""
    return jax.process_index() == 0


@contextlib.contextmanager
def collective_directory(directory: Path) -> Iterator[Path]:
    """Yields one temporary sibling to all processes; the first renames it to `directory` when all are done.

    An existing `directory` is replaced only then. On an exception the temporary is removed and `directory` is left as
    it was.
    """
    directory = Path(directory)
    temporary = directory.parent / f".{directory.name}.partial"
    if is_writer():
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    _barrier(f"open {directory}")
    try:
        yield temporary
        _barrier(f"written {directory}")
        if is_writer():
            if directory.is_dir():
                shutil.rmtree(directory)
            os.replace(temporary, directory)
    finally:
        if is_writer():
            shutil.rmtree(temporary, ignore_errors=True)
    _barrier(f"renamed {directory}")


def copy_tokenizer(source: Path, *, to: Path) -> None:
    """Copies the files of a tokenizer into directory `to`; UserError if there are none."""
    names = [name for name in TOKENIZER_FILES if (Path(source) / name).is_file()]
    if not {"tokenizer.model", "tokenizer.json"} & set(names):
        raise UserError(f"{source}: holds neither tokenizer.model nor tokenizer.json")
    Path(to).mkdir(parents=True, exist_ok=True)
    for name in names:
        shutil.copyfile(Path(source) / name, Path(to) / name)


def _barrier(name: str) -> None:
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)
