"""Atomic writes, locks, JSON and hashes: nothing is ever half-written under its final name."""

import contextlib
import ctypes
import fcntl
import hashlib
import json
import math
import os
import re
import shutil
import types
import uuid
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import logging

from allam_jax.errors import UserError

if TYPE_CHECKING:
    import numpy as np

CACHE_VARIABLE = "ALLAM_JAX_CACHE"  # names the cache directory
_JSON_ERRORS = "backslashreplace"  # of Python, whose escape of half of a surrogate pair is JSON's
Keys = Mapping[str, type | tuple[type, ...]]  # those of a JSON object, with the types of their values


def cache_directory() -> Path:
    """Where downloads and what can be made again are kept: $ALLAM_JAX_CACHE, or a folder of the user's cache."""
    return Path(os.environ.get(CACHE_VARIABLE) or "~/.cache/allam_jax").expanduser()


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yields a temporary sibling of `path` to write a file or directory to; renames it on success.

    A file at `path` is replaced. So is a directory. On an exception the temporary is removed
    and `path` is untouched. `sweep` removes what a killed process has left.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.name}.{uuid.uuid4().hex[:8]}.tmp"
    try:
        yield temporary
        replace(temporary, path)
    finally:
        remove(temporary)


def replace(source: Path, target: Path) -> None:
    """Renames `source` to `target`, in place of a file or directory there, which is removed."""
    if not (source.is_dir() and target.is_dir()):
        os.replace(source, target)
    elif _exchange(source, target):
        shutil.rmtree(source)
    else:
        # A directory cannot be replaced in one step here: move it aside, so that a crash now loses nothing.
        aside = source.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.old")
        os.replace(target, aside)
        os.replace(source, target)
        shutil.rmtree(aside)


def _exchange(first: Path, second: Path) -> bool:
    """Exchanges two names in one step, where the system and the file system can (Linux's renameat2)."""
    exchange, here = 2, -100  # RENAME_EXCHANGE, AT_FDCWD
    try:
        rename = ctypes.CDLL(None).renameat2
    except (OSError, AttributeError):
        return False
    return rename(here, os.fsencode(first), here, os.fsencode(second), exchange) == 0


def remove(path: Path) -> None:
    """Removes a file, or a directory with all that is in it; does nothing if it is not there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def sweep(directory: Path) -> None:
    """Removes what killed processes have left of atomic writes. Only for who alone writes in `directory`."""
    for path in Path(directory).iterdir():
        if found := re.fullmatch(r"\.(.+)\.[0-9a-f]{8}\.(tmp|old)", path.name):
            target = path.with_name(found[1])
            if found[2] == "old" and not target.exists():
                os.replace(path, target)  # the crash came between two renames
            else:
                remove(path)
        elif re.fullmatch(r"\..+\.partial", path.name) and path.is_dir():  # of `collective_directory`
            remove(path)


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


def write_text(path: Path, text: str, *, errors: str = "strict") -> None:
    """Writes UTF-8 text atomically; `errors` as for `open`."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors=errors)


def write_json_lines(path: Path, rows: Iterable[Any]) -> None:
    """Writes JSON Lines atomically, each row as `json_text` has it; see `write_json` for half of a surrogate pair."""
    write_text(path, "".join(f"{json_text(row)}\n" for row in rows), errors=_JSON_ERRORS)


def write_array(path: Path, array: "np.ndarray") -> None:
    """Writes an array as .npy, atomically and through to the disk; OSError names what went wrong."""
    import numpy as np  # here, because most that use this module need no arrays

    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        # NumPy's own way into a file object says only how much it wrote when the disk is full.
        np.save(types.SimpleNamespace(write=file.write), array)  # type: ignore[arg-type]
        file.flush()
        os.fsync(file.fileno())


def read_array(path: Path, *, remedy: str, mapped: bool = False) -> "np.ndarray":
    """The array of a .npy file, mapped into memory or read; UserError (ending with the remedy) if it cannot be read."""
    import numpy as np

    try:
        # Mapped as a plain array, because a slice of numpy's memmap class costs ten times as much.
        return np.asarray(np.load(path, mmap_mode="r" if mapped else None))
    except Exception as error:  # damaged headers are evaluated as Python, which raises anything
        raise UserError(f"{path}: not readable ({' '.join(str(error).split())}); {remedy}") from None


def json_text(value: Any, *, indent: int | None = None) -> str:
    """A value as JSON that every parser reads: NaN and the infinities, for which JSON has no numbers, become null."""
    try:
        return json.dumps(value, ensure_ascii=False, indent=indent, allow_nan=False)
    except ValueError:
        return json.dumps(_finite(value), ensure_ascii=False, indent=indent, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value


def write_json(path: Path, value: Any) -> None:
    """Writes indented JSON atomically; keys keep their order. Numbers that are not finite become null.

    Half of a surrogate pair, which UTF-8 has not, is written as the escape with which JSON spells it.
    """
    write_text(path, json_text(value, indent=2) + "\n", errors=_JSON_ERRORS)


def read_json(path: Path, *, kind: type = object, keys: Keys | None = None) -> Any:
    """Reads JSON of a stated shape.

    Args:
        path: the file.
        kind: type of the whole, such as dict.
        keys: of an object: those that it must have, with the types of their values.

    Raises:
        UserError: the file is missing, is not JSON, or has another shape; names the file and the key.
    """
    path = Path(path)
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (IsADirectoryError, NotADirectoryError):
        raise UserError(f"{path}: expected a file of JSON, but a directory is where it or its parent belongs") from None
    return parse_json(raw, path=path, kind=kind, keys=keys)


def refuse_pointer(path: Path, content: bytes) -> None:
    """UserError if a file begins like the pointer that Git leaves where it has not fetched a large file."""
    if content.startswith(b"version https://git-lfs"):
        raise UserError(f"{path}: a pointer of Git LFS, not the file itself; run `git lfs pull` in its directory")


def parse_json(raw: bytes, *, path: Path, kind: type = object, keys: Keys | None = None) -> Any:
    """The value of the content of `path`; see `read_json`."""
    try:
        value = json.loads(raw.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        state = "is empty" if not raw.strip() else f"not valid JSON ({error})"
        raise UserError(f"{path}: {state}; copy it again, or remove what it belongs to and make that anew") from None
    check_shape(value, kind=dict if keys else kind, keys=keys or {}, where=f"{path}:")
    return value


def check_shape(value: Any, *, kind: type, keys: Keys, where: str) -> None:
    """UserError (beginning with `where`) unless a value read from JSON is a `kind` that has these keys."""
    remedy = "it is damaged or of another program: copy it again, or make it anew"
    fits = isinstance(value, kind)
    if not fits:
        raise UserError(f"{where} holds {_json_noun(type(value))} where {_json_noun(kind)} belongs; {remedy}")
    for key, wanted in keys.items():
        kinds = wanted if isinstance(wanted, tuple) else (wanted,)
        if key not in value:
            raise UserError(f"{where} lacks the key {key!r}; {remedy}")
        fits = isinstance(value[key], kinds) and (bool in kinds or not isinstance(value[key], bool))
        if not fits:
            found = _json_noun(type(value[key]))
            raise UserError(f"{where} {key!r} is {found}, expected {' or '.join(map(_json_noun, kinds))}; {remedy}")


def _json_noun(kind: type) -> str:
    nouns = {dict: "an object", list: "a list", str: "a string", int: "a whole number", float: "a number"}
    return nouns.get(kind, "null" if kind is type(None) else "a truth value" if kind is bool else "another value")


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


def is_unicode(text: str) -> bool:
    """Whether UTF-8 has the text: it holds no half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
