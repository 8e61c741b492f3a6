"""Writes a directory atomically with all processes taking part, and copies tokenizer files into it."""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

from allam_jax.checksums import FILE_LIST, write_listed
from allam_jax.errors import UserError
from allam_jax.files import json_text, remove, replace
from allam_jax.parallel.distributed import barrier, broadcast, is_main_process
from allam_jax.tokenizer.generation_config import read_generation
from allam_jax.tokenizer.tokenizer_files import (
    GENERATION_FILE,
    MODEL_FILES,
    MORE_TEMPLATES,
    TOKENIZER_FILES,
    check_files,
)


@contextlib.contextmanager
def collective_directory(directory: Path) -> Iterator[Path]:
    """Yields the same temporary sibling to all processes; the main process renames it to `directory` when all are done.

    The rename replaces an existing `directory` that this code wrote, and no other. On an exception, the temporary is
    removed and `directory` stays as it was; an OSError becomes a UserError. An error that only one process would meet
    must be checked before, because the others would wait for that process.
    """
    directory = Path(directory)
    temporary = directory.parent / f".{directory.name}.partial"
    if broadcast(directory.exists() and not _is_own(directory)):
        raise UserError(
            f"{directory}: holds something that was not written here (it has no {FILE_LIST}), so it is not replaced; "
            "move it away, or write elsewhere"
        )
    if is_main_process():
        remove(temporary)
        temporary.mkdir(parents=True)
    barrier(f"open {directory}")
    try:
        yield temporary
        barrier(f"written {directory}")
        if is_main_process():
            replace(temporary, directory)
    except OSError as error:
        raise UserError(f"{directory}: cannot be written ({error.strerror}); check the disk and try again") from error
    finally:
        if is_main_process():
            remove(temporary)
    barrier(f"renamed {directory}")


def _is_own(directory: Path) -> bool:
    return directory.is_dir() and ((directory / FILE_LIST).is_file() or not any(directory.iterdir()))


def tokenizer_files(directory: Path) -> list[Path]:
    """The files of the tokenizer in a directory; UserError if there is none."""
    names = [name for name in TOKENIZER_FILES if (Path(directory) / name).is_file()]
    if not set(MODEL_FILES) & set(names):
        raise UserError(f"{directory}: holds neither tokenizer.model nor tokenizer.json")
    return [*(Path(directory) / name for name in names), *sorted(Path(directory).glob(MORE_TEMPLATES))]


def copy_tokenizer(source: Path, *, to: Path, changed: Mapping[str, bytes] = MappingProxyType({})) -> None:
    """Copies the files of a tokenizer into the directory `to`, which is made, with their list.

    What the model says beside it (tokenizer/generation_config.py) goes along. `changed` are files, by name, that take
    the place of the source's.

    UserError if there are none, or if one of them is not as it was written.
    """
    contents = {file.relative_to(source).as_posix(): file.read_bytes() for file in tokenizer_files(source)}
    check_files(source, contents)
    if generation := read_generation(source):
        contents[GENERATION_FILE] = f"{json_text(generation, indent=2)}\n".encode()
    write_listed(to, contents | dict(changed), whole=True)
