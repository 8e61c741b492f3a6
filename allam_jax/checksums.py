"""Checksums of what is read again: `files.json` in a directory lists its files with their sizes and hashes.

Every directory that this code writes has such a list: checkpoints, weights, exports, tokenizers, datasets, token caches
and workdirs. A reader compares what it has read with the list, so that a byte that was flipped, appended or cut off is
named and never used. The list also has the hashes of arrays, which are taken in memory before they are written
(`weights/array_checksums.py`), and a checksum of itself. The hash is XXH3 with 128 bits: on one core it reads ten times
as many bytes a second as SHA-256 and finds the same accidents. It is no protection against intent. A large file has the
hash of the hashes of its pieces, which several threads take; lists from before have plain ones, which are read too.
"""

import dataclasses
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import xxhash
from absl import logging

from allam_jax.errors import UserError
from allam_jax.files import atomic_path, parse_json, read_json, write_json

FILE_LIST = "files.json"
_VERSION = 2
_BUFFER = 1 << 20
_PIECE = 1 << 26  # bytes of a large file that one thread hashes
_OF_PIECES = "p"  # before the hash of hashes
_MADE_AGAIN = "it is made again"


def hash_bytes(content: Any) -> str:
    """32 hexadecimal digits: XXH3 with 128 bits, of bytes or any contiguous buffer."""
    return xxhash.xxh3_128_hexdigest(content)


def hash_file(path: Path, *, like: str = "") -> str:
    """The hash of a file's content as the lists have it; `like` is one from a list, of the same kind."""
    size = path.stat().st_size
    if size <= _PIECE or (like and not like.startswith(_OF_PIECES)):
        return _hash_part(path, 0, size)
    with _pool() as pool:
        return _of_pieces(pool.map(lambda start: _hash_part(path, start, _PIECE), range(0, size, _PIECE)))


def _hash_part(path: Path, start: int, size: int) -> str:
    state, buffer = xxhash.xxh3_128(), memoryview(bytearray(_BUFFER))
    with open(path, "rb", buffering=0) as file:
        file.seek(start)
        while size and (count := file.readinto(buffer[:size])):
            state.update(buffer[:count])
            size -= count
    return state.hexdigest()


def _hash_content(content: bytes, *, like: str) -> str:
    """`hash_file` of the content."""
    if not like.startswith(_OF_PIECES):
        return hash_bytes(content)
    view = memoryview(content)
    return _of_pieces(hash_bytes(view[start : start + _PIECE]) for start in range(0, len(view), _PIECE))


def _of_pieces(hashes: Iterable[str]) -> str:
    return _OF_PIECES + hash_bytes("".join(hashes).encode())


def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(min(8, os.cpu_count() or 1))


def hash_json(value: Any) -> str:
    """`hash_bytes` of a JSON-able value; independent of key order."""
    return hash_bytes(json.dumps(value, sort_keys=True, ensure_ascii=False).encode())


@dataclasses.dataclass(frozen=True)
class Damage:
    """A file that is not as it was written."""

    path: Path
    reason: str

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


@dataclasses.dataclass(frozen=True)
class FileList:
    """The list of a directory.

    Attributes:
        directory: where the files lie.
        files: relative path -> (size in bytes, hash; None in lists written before there were hashes).
        arrays: hashes of the values that the files hold; see `weights/array_checksums.py`, `weights/safetensors_io.py`.
    """

    directory: Path
    files: Mapping[str, tuple[int, str | None]]
    arrays: Mapping[str, Any]

    @classmethod
    def read(cls, directory: Path, *, remedy: str) -> "FileList":
        """Reads `directory/files.json`; UserError (ending with the remedy) if it is missing or damaged."""
        path = Path(directory) / FILE_LIST
        if not path.is_file():
            raise UserError(f"{path}: is missing; {remedy}")
        raw = path.read_bytes()
        values = parse_json(raw, path=path, kind=dict)
        if "version" not in values:  # name -> size, as before there were hashes
            sizes = {name: (size, None) for name, size in values.items() if isinstance(size, int)}
            if sizes.keys() != values.keys():
                raise UserError(f"{path}: is damaged (not a list of files); {remedy}")
            return cls(Path(directory), sizes, {})
        if values.pop("checksum", None) != hash_json(values):
            raise UserError(f"{path}: is damaged (it differs from its own checksum); {remedy}")
        if values["version"] != _VERSION:
            raise UserError(f"{path}: version {values['version']!r}; this code reads {_VERSION}")
        files = {name: (size, found) for name, (size, found) in values["files"].items()}
        return cls(Path(directory), files, values["arrays"])

    @property
    def has_hashes(self) -> bool:
        """False for a list of sizes alone."""
        return all(found is not None for _, found in self.files.values())

    def misplaced(self, *, reads: Callable[[str], bool]) -> Iterator[Damage]:
        """What is missing or has another size, and files that are not listed although a reader would read them."""
        there = {name: path for name, path in _files_below(self.directory) if reads(name) or name in self.files}
        for name, (size, _) in self.files.items():
            if not reads(name):
                continue
            if name not in there:
                yield Damage(self.directory / name, "is missing")
            elif (found := there[name].stat().st_size) != size:
                yield Damage(self.directory / name, f"is {found:,} bytes long instead of {size:,}")
        for name in sorted(there.keys() - self.files.keys()):
            if name != FILE_LIST and not Path(name).name.startswith("."):
                yield Damage(self.directory / name, "is not among the files that were written here")

    def check(self, *, remedy: str, reads: Callable[[str], bool] = lambda _: True) -> None:
        """UserError for the first file that is missing, has another size or does not belong here; opens no file."""
        for damage in self.misplaced(reads=reads):
            raise UserError(f"{damage}; {remedy}")

    def check_bytes(self, *, remedy: str, reads: Callable[[str], bool] = lambda _: True) -> None:
        """As `check`, and reads the files in full: UserError for the first whose bytes have changed."""
        for damage in self.damages(reads=reads):
            raise UserError(f"{damage}; {remedy}")

    def damages(self, *, reads: Callable[[str], bool] = lambda _: True) -> Iterator[Damage]:
        """Everything that is not as it was written; reads all files in full."""
        misplaced = list(self.misplaced(reads=reads))
        yield from misplaced
        wrong = {damage.path for damage in misplaced}
        names = [name for name in self.files if reads(name) and self.directory / name not in wrong]
        with _pool() as pool:
            found = pool.map(lambda name: self._file_damage(name), names)
            yield from (damage for damage in found if damage)

    def read_bytes(self, name: str, *, remedy: str) -> bytes:
        """The content of a listed file; UserError if it is not what was written."""
        path = self.directory / name
        if name not in self.files:
            raise UserError(f"{path}: is not in {FILE_LIST}; {remedy}")
        if not path.is_file():  # a pipe would be waited for
            raise UserError(f"{path}: is missing; {remedy}")
        content = path.read_bytes()
        self.compare(name, content, remedy=remedy)
        return content

    def compare(self, name: str, content: bytes, *, remedy: str) -> None:
        """UserError if this content of a listed file is not what was written."""
        size, expected = self.files[name]
        if len(content) != size:
            found = f"is {len(content):,} bytes long instead of {size:,}"
            raise UserError(f"{self.directory / name}: {found}; {remedy}")
        if expected is not None and expected != _hash_content(content, like=expected):
            raise UserError(f"{self.directory / name}: {_CHANGED}; {remedy}")

    def read_json(self, name: str, *, remedy: str) -> dict[str, Any]:
        """The JSON object in a listed file; errors as of `read_bytes`."""
        return parse_json(self.read_bytes(name, remedy=remedy), path=self.directory / name, kind=dict)

    def _file_damage(self, name: str) -> Damage | None:
        path, (_, expected) = self.directory / name, self.files[name]
        try:
            fine = expected is None or expected == hash_file(path, like=expected)
            return None if fine else Damage(path, _CHANGED)
        except OSError as error:
            return Damage(path, f"cannot be read ({error.strerror})")


_CHANGED = "its bytes are not those that were written (xxh3)"


def find_list(directory: Path, *, remedy: str) -> FileList | None:
    """The list of a directory that may have none, such as one of others."""
    return FileList.read(directory, remedy=remedy) if (Path(directory) / FILE_LIST).exists() else None


def is_whole(directory: Path) -> bool:
    """Whether a directory that can be made again is there, each byte as it was written. Logs what is damaged."""
    if not Path(directory).is_dir():
        return False
    try:
        FileList.read(directory, remedy=_MADE_AGAIN).check_bytes(remedy=_MADE_AGAIN)
    except UserError as error:
        logging.warning("%s", error)
        return False
    return True


def read_listed(directory: Path, name: str, *, remedy: str) -> dict[str, Any]:
    """The JSON object in a file of a directory, compared with the directory's list if that names it."""
    files = find_list(directory, remedy=remedy)
    if files is not None and name in files.files:
        return files.read_json(name, remedy=remedy)
    return read_json(Path(directory) / name, kind=dict)


def write_list(
    directory: Path,
    *,
    names: Iterable[str] | None = None,
    arrays: Mapping[str, Any] | None = None,
    known: Mapping[str, tuple[int, str]] | None = None,
) -> None:
    """Writes the list of a directory that is complete: all files below it, or `names`; those `known` are not read."""
    directory = Path(directory)
    found = sorted(name for name, _ in _files_below(directory) if name != FILE_LIST) if names is None else names
    entries = dict(known or {})
    unread = [name for name in found if name not in entries]
    with _pool() as pool:
        entries.update(zip(unread, pool.map(lambda name: entry_of(directory / name), unread), strict=True))
    _write(directory, entries, arrays or {})


def entry_of(path: Path) -> tuple[int, str]:
    """What a list says of a file: its size in bytes, and its hash."""
    return path.stat().st_size, hash_file(path)


def write_listed(directory: Path, contents: Mapping[str, bytes], *, whole: bool = False) -> None:
    """Writes files into a directory, each atomically, and their entries into its list; other entries stay.

    Args:
        directory: is made if missing.
        contents: name -> content.
        whole: the files make sense only together: after a crash half-way the directory counts as damaged. Otherwise
            files that are not yet listed count as whole.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    kept: dict[str, tuple[int, str | None]] = {}
    arrays: Mapping[str, Any] = {}
    if (directory / FILE_LIST).exists():
        try:
            old = FileList.read(directory, remedy="")
            kept, arrays = dict(old.files), old.arrays
        except UserError:  # what is written now makes the list anew
            pass
    new = {name: (len(content), hash_bytes(content)) for name, content in contents.items()}
    if all(kept.get(name) == entry and _holds(directory / name, contents[name]) for name, entry in new.items()):
        return
    others = {name: entry for name, entry in kept.items() if name not in new}
    _write(directory, others | (new if whole else {}), arrays)
    for name, content in contents.items():
        with atomic_path(directory / name) as temporary:
            temporary.write_bytes(content)
    if not whole:
        _write(directory, others | new, arrays)


def _holds(path: Path, content: bytes) -> bool:
    return path.is_file() and path.read_bytes() == content


def _write(directory: Path, files: Mapping[str, Any], arrays: Mapping[str, Any]) -> None:
    entries = {name: list(entry) for name, entry in sorted(files.items())}
    values = {"version": _VERSION, "files": entries, "arrays": arrays}
    write_json(directory / FILE_LIST, values | {"checksum": hash_json(values)})


def _files_below(directory: Path) -> Iterator[tuple[str, Path]]:
    for path in sorted(Path(directory).rglob("*")):
        if path.is_file():
            yield path.relative_to(directory).as_posix(), path
