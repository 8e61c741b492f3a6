"""Atomic writes, locks, JSON and hashes: nothing is ever half-written under its final name."""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import types
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import logging

from allam_jax.errors import UserError

if TYPE_CHECKING:
    import numpy as np


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yields a temporary sibling of `path` to write a file or directory to; renames it on success.

    A file at `path` is replaced. So is a directory. On an exception the temporary is removed
    and `path` is untouched.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.name}.{uuid.uuid4().hex[:8]}.tmp"
    try:
        yield temporary
        if temporary.is_dir() and path.is_dir():
            # A directory cannot be replaced in one step: move it aside, so that a crash here loses nothing.
            aside = temporary.with_suffix(".old")
            os.replace(path, aside)
            os.replace(temporary, path)
            shutil.rmtree(aside)
        else:
            os.replace(temporary, path)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)


def child(directory: Path, name: str, *, what: str) -> Path:
    """`directory / name` for a name that a config or data gave; UserError if it is no plain name of a file.

    `what` names its place in the error.
    """
    if not name or name.startswith(".") or len(name.encode()) > 200 or not name.isprintable() or set(name) & set("/\\"):
        raise UserError(f"{what}: {name[:60]!r} is no name for a file: no slashes, no dot in front, at most 200 bytes")
    return Path(directory) / name


@contextlib.contextmanager
def lock(path: Path, *, busy: str, wait: bool) -> Iterator[None]:
    """Holds an exclusive lock, which ends with the process, however that ends.

    On a file system without locks it only logs that.

    Args:
        path: a directory, or a file, which is created if it is missing.
        busy: one line, for when another process holds the lock.
        wait: log that line and wait for the lock; otherwise the line is raised as UserError.
    """
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR | os.O_CREAT)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not wait:
                raise UserError(busy) from None
            logging.info("%s", busy)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError:
            logging.info("%s: this file system has no locks; let only one run write there", path)
        yield
    finally:
        os.close(descriptor)


def shown(path: Path) -> str:
    """The path as a string that can be written anywhere: names on disk need not be UTF-8."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def write_text(path: Path, text: str) -> None:
    """Writes UTF-8 text atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_array(path: Path, array: "np.ndarray") -> None:
    """Writes an array as .npy, atomically and through to the disk; OSError names what went wrong."""
    import numpy as np  # here, because most that use this module need no arrays

    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        # NumPy's own way into a file object says only how much it wrote when the disk is full.
        np.save(types.SimpleNamespace(write=file.write), array)  # type: ignore[arg-type]
        file.flush()
        os.fsync(file.fileno())


def write_json(path: Path, value: Any) -> None:
    """Writes indented JSON atomically; keys keep their order."""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=2) + "\n")


def read_json(path: Path) -> Any:
    """Reads JSON; UserError if the file is missing or is not JSON."""
    path = Path(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid JSON ({error})") from None


def file_sizes(folder: Path) -> dict[str, int]:
    """The size in bytes of every file below `folder`, by its relative path."""
    folder = Path(folder)
    return {str(path.relative_to(folder)): path.stat().st_size for path in sorted(folder.rglob("*")) if path.is_file()}


def check_file_sizes(folder: Path, *, expected: dict[str, int], remedy: str) -> None:
    """UserError for the first file that is missing or not as long as expected: a copy that is not complete."""
    found = file_sizes(folder)
    for name, size in expected.items():
        if found.get(name) != size:
            state = "missing" if name not in found else f"{found[name]:,} bytes long instead of {size:,}"
            raise UserError(f"{Path(folder) / name}: is {state}; {remedy}")


def sha256_of_file(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of_json(value: Any) -> str:
    """Hex SHA-256 of a JSON-able value; independent of key order."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def unit_hash(key: str) -> float:
    """A number in [0, 1) that follows from the key alone, on every machine: draws that need no generator."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest()) / 2**64
