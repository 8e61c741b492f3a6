"""Writes a directory atomically with all processes taking part, and copies tokenizer files into it."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from allam_jax.errors import UserError
from allam_jax.parallel.distributed import barrier, is_main_process

# The files of a tokenizer, here and in transformers. Other files are not copied.
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


@contextlib.contextmanager
def collective_directory(directory: Path) -> Iterator[Path]:
    """Yields the same temporary sibling to all processes; the main process renames it to `directory` when all are done.

    The rename replaces an existing `directory`. On an exception, the temporary is removed and `directory` stays as it
    was; an OSError becomes a UserError. An error that only one process would meet must be checked before, because the
    others would wait for that process.
    """
    directory = Path(directory)
    temporary = directory.parent / f".{directory.name}.partial"
    replaced = directory.parent / f".{directory.name}.replaced"
    if is_main_process():
        for leftover in (temporary, replaced):
            shutil.rmtree(leftover, ignore_errors=True)
        temporary.mkdir(parents=True)
    barrier(f"open {directory}")
    try:
        yield temporary
        barrier(f"written {directory}")
        if is_main_process():
            if directory.is_dir():
                os.replace(directory, replaced)
            os.replace(temporary, directory)
            shutil.rmtree(replaced, ignore_errors=True)
    except OSError as error:
        raise UserError(f"{directory}: cannot be written ({error.strerror}); check the disk and try again") from error
    finally:
        if is_main_process():
            shutil.rmtree(temporary, ignore_errors=True)
    barrier(f"renamed {directory}")


def tokenizer_files(directory: Path) -> list[Path]:
    """The files of the tokenizer in a directory; UserError if there is none."""
    names = [name for name in TOKENIZER_FILES if (Path(directory) / name).is_file()]
    if not {"tokenizer.model", "tokenizer.json"} & set(names):
        raise UserError(f"{directory}: holds neither tokenizer.model nor tokenizer.json")
    return [Path(directory) / name for name in names]


def copy_tokenizer(source: Path, *, to: Path) -> None:
    """Copies the files of a tokenizer into the directory `to`, which is made; UserError if there are none."""
    files = tokenizer_files(source)
    Path(to).mkdir(parents=True, exist_ok=True)
    for file in files:
        shutil.copyfile(file, Path(to) / file.name)
