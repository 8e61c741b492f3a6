"""What a finished piece of work has read: its files by name, size, time and hash, so that a change is noticed.

Looking again costs one `stat` a file. Only a file whose time differs while its size does not (it was copied, or checked
out anew) is hashed again. Names are relative, so that a folder can be moved.
"""

import concurrent.futures
import dataclasses
import functools
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import xxhash

from allam_jax.files import shown

_BLOCK = 1 << 22
_THREADS = 4  # reading and hashing let other threads run

# Name -> [size in bytes, time of the last change in nanoseconds, XXH3 of the content].
Record = dict[str, list[Any]]


@dataclasses.dataclass(frozen=True)
class InputFiles:
    """Files as they are at some time.

    Attributes:
        root: a folder above all of them.
        files: name below the root -> path.
        states: name -> size in bytes, time of the last change in nanoseconds.
    """

    root: Path
    files: Mapping[str, Path]
    states: Mapping[str, tuple[int, int]]

    def changed(self, record: Record) -> tuple[list[str], bool]:
        """Lines that say how these files differ from those of a record; whether only times do, for a new record."""
        lines = [f"{name} is gone" for name in record if name not in self.states]
        touched = []
        for name, (size, modified) in self.states.items():
            if name not in record:
                lines.append(f"{name} is new")
            elif size != record[name][0]:
                lines.append(f"{name} has changed ({record[name][0]:,} bytes before, {size:,} now)")
            elif modified != record[name][1]:
                touched.append(name)
        # Nothing is read where the answer is known already.
        hashes = [] if lines else self._hashes(touched)
        different = [name for name, hash_ in zip(touched, hashes, strict=False) if hash_ != record[name][2]]
        lines += [f"{name} has changed" for name in different]
        return sorted(lines), bool(touched) and not lines

    def record(self) -> Record:
        """The record of these files. One that has changed since has an empty hash, which equals none."""
        hashes = self._hashes(self.states)
        now = look(self.root, self.files.values())
        hashes = [h if now.states.get(n) == s else "" for h, (n, s) in zip(hashes, self.states.items(), strict=True)]
        return {name: [*state, hash_] for (name, state), hash_ in zip(self.states.items(), hashes, strict=True)}

    def _hashes(self, names: Iterable[str]) -> list[str]:
        with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
            return list(pool.map(lambda name: _hash(self.files[name], self.states[name]), names))


def look(root: Path, files: Iterable[Path]) -> InputFiles:
    """The state of these files; those that are gone are left out."""
    found, states = {}, {}
    for file in files:
        try:
            status = file.stat()
        except OSError:
            continue
        name = shown(Path(os.path.relpath(file, root)))
        found[name], states[name] = file, (status.st_size, status.st_mtime_ns)
    return InputFiles(root, found, states)


@functools.lru_cache(1 << 16)  # a corpus and the recipe above it record the same files
def _hash(file: Path, state: tuple[int, int]) -> str:
    digest = xxhash.xxh3_128()
    buffer = memoryview(bytearray(_BLOCK))
    try:
        with open(file, "rb") as stream:
            while size := stream.readinto(buffer):
                digest.update(buffer[:size])
    except OSError:  # it went or cannot be read: no hash is equal to this
        return ""
    return digest.hexdigest()
