"""Reads the headers of GGUF files (llama.cpp's format): the metadata, and where each tensor lies.

The `gguf` package knows the types of tensors and their arithmetic. Its reader of headers makes an array of every string
(two seconds for a vocabulary of 49,000) and never returns from a file in which a length is damaged, so headers are read
here. The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import dataclasses
import math
import mmap
import re
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from allam_jax.errors import UserError
from allam_jax.files import refuse_pointer

if TYPE_CHECKING:
    from gguf import GGMLQuantizationType

_MAGIC, _VERSIONS = b"GGUF", (2, 3)
_STRING, _ARRAY = 8, 9
# Types of values by number, as NumPy names them.
_SCALARS = {0: "u1", 1: "i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "?", 10: "<u8", 11: "<i8", 12: "<f8"}
_MOST_AXES = 4
_SPLIT = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")


@dataclasses.dataclass(frozen=True)
class GgufEntry:
    """Where a tensor lies: `shape` is row-major, and rows are stored one after another in blocks of `kind`."""

    name: str
    shape: tuple[int, ...]
    kind: "GGMLQuantizationType"
    file: Path
    offset: int

    @property
    def row_bytes(self) -> int:
        """Bytes of one row, which is the last axis."""
        block, size = _block_of(self.kind)
        return self.shape[-1] // block * size

    @property
    def nbytes(self) -> int:
        """Size in the file."""
        return math.prod(self.shape[:-1]) * self.row_bytes


@dataclasses.dataclass(frozen=True)
class GgufFile:
    """A model in the format: of several files, the first, with the tensors of all."""

    path: Path
    metadata: Mapping[str, Any]  # key -> number, string, list of strings, or array of numbers
    tensors: Mapping[str, GgufEntry]

    def get(self, key: str, kind: type, default: Any = ...) -> Any:
        """A value of the metadata; UserError if it is missing without a default, or of another type."""
        value = self.metadata.get(key, default)
        if value is ...:
            raise UserError(f"{self.path}: lacks the metadata {key}; export it again with llama.cpp's converter")
        if value is not default and (isinstance(value, bool) is not (kind is bool) or not isinstance(value, kind)):
            raise UserError(f"{self.path}: {key} = {str(value)[:60]!r}; expected a value of type {kind.__name__}")
        return value


def gguf_at(path: Path) -> Path | None:
    """The GGUF file that a path means: the path itself, or the only one of a directory (of a split one, the first).

    None if there is none. UserError if a directory holds several models.
    """
    path = Path(path)
    if not path.is_dir():
        return path if path.suffix == ".gguf" and path.is_file() else None
    found = [file for file in sorted(path.glob("*.gguf")) if not _is_later_part(file)]
    if len(found) > 1:
        raise UserError(
            f"{path}: holds {len(found)} GGUF models, such as {found[0].name}; give the path of one of them"
        )
    return found[0] if found else None


def read_gguf(path: Path) -> GgufFile:
    """Reads the header of a model, and those of its further files if it is split.

    UserError if the file is missing, is no GGUF file, is truncated or damaged, or a further file is missing.
    """
    path = Path(path)
    first = _read(path)
    count = first.get("split.count", int, 1)
    if count <= 1:
        return first
    name = _SPLIT.fullmatch(path.name)
    if name is None or (int(name[2]), int(name[3])) != (1, count):
        raise UserError(f"{path}: one of {count} files of a model; give the path of the first, named ...-00001-of-...")
    tensors = dict(first.tensors)
    for number in range(2, count + 1):
        tensors |= _read(path.with_name(f"{name[1]}-{number:05d}-of-{count:05d}.gguf")).tensors
    return dataclasses.replace(first, tensors=tensors)


def _is_later_part(file: Path) -> bool:
    name = _SPLIT.fullmatch(file.name)
    return name is not None and int(name[2]) > 1


class _DamagedError(ValueError):
    """The bytes make no header."""


def _read(path: Path) -> GgufFile:
    try:
        with open(path, "rb") as file:
            refuse_pointer(path, file.read(40))
            size = file.seek(0, 2)
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else b""
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    try:
        if content[:4] != _MAGIC:
            raise _DamagedError("does not begin with GGUF")
        cursor = _Cursor(content, 4)
        version = cursor.number("<u4")
        if version not in _VERSIONS:
            raise UserError(
                f"{path}: version {version} of GGUF; this code reads {_VERSIONS} with little-endian numbers"
            )
        num_tensors, num_values = cursor.number("<u8"), cursor.number("<u8")
        metadata = dict(cursor.entries(num_values))
        entries = list(cursor.tensors(num_tensors, path))
        alignment = metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 1:
            raise _DamagedError(f"general.alignment = {alignment!r}")
        start = -(-cursor.position // alignment) * alignment
        tensors = {entry.name: dataclasses.replace(entry, offset=start + entry.offset) for entry in entries}
        if len(tensors) < num_tensors or len(metadata) < num_values:
            raise _DamagedError("a name occurs twice")
        end = start
        for entry in sorted(tensors.values(), key=lambda entry: (entry.offset, entry.nbytes)):
            if entry.offset < end:
                raise _DamagedError(f"tensor {entry.name} overlaps the one before it")
            end = entry.offset + entry.nbytes
        if end > size:
            raise UserError(f"{path}: truncated: {size:,} bytes, but its header promises {end:,}; fetch it again")
    except _DamagedError as error:
        raise UserError(f"{path}: not a GGUF file, or its header is damaged ({error}); fetch it again") from None
    return GgufFile(path, metadata, tensors)


@dataclasses.dataclass
class _Cursor:
    """A place in the bytes of a file, from which values are read one after another."""

    content: Any
    position: int

    def take(self, size: int) -> bytes:
        """The next bytes."""
        start, self.position = self.position, self.position + size
        if self.position > len(self.content):
            raise _DamagedError("it ends inside the header")
        return self.content[start : self.position]

    def number(self, dtype: str) -> Any:
        """The next number, as Python's."""
        return np.frombuffer(self.take(np.dtype(dtype).itemsize), dtype)[0].item()

    def string(self) -> str:
        """The next string."""
        (size,) = struct.unpack("<Q", self.take(8))
        try:
            return self.take(size).decode("utf-8")
        except UnicodeDecodeError:
            raise _DamagedError("a string is not UTF-8") from None

    def value(self, kind: int) -> Any:
        """The next value of the metadata, of the type with this number."""
        if kind == _STRING:
            return self.string()
        if kind in _SCALARS:
            return self.number(_SCALARS[kind])
        if kind != _ARRAY:
            raise _DamagedError(f"type {kind} of a value")
        item, count = self.number("<u4"), self.number("<u8")
        if item in _SCALARS:
            return np.frombuffer(self.take(count * np.dtype(_SCALARS[item]).itemsize), _SCALARS[item])
        if item != _STRING or count > len(self.content):
            raise _DamagedError(f"{count:,} values of type {item}")
        return [self.string() for _ in range(count)]

    def entries(self, count: int) -> Iterator[tuple[str, Any]]:
        """The metadata."""
        for _ in range(count):
            key = self.string()
            yield key, self.value(self.number("<u4"))

    def tensors(self, count: int, path: Path) -> Iterator[GgufEntry]:
        """The tensors; their offsets count from the end of the header."""
        from gguf import GGMLQuantizationType  # here, because the import takes time

        for _ in range(count):
            name, axes = self.string(), self.number("<u4")
            if not 1 <= axes <= _MOST_AXES:
                raise _DamagedError(f"tensor {name[:60]} has {axes} axes")
            shape = tuple(self.number("<u8") for _ in range(axes))[::-1]
            number, offset = self.number("<u4"), self.number("<u8")
            try:
                kind = GGMLQuantizationType(number)
            except ValueError:
                raise _DamagedError(f"tensor {name[:60]} has the unknown type {number}") from None
            if shape[-1] % _block_of(kind)[0]:
                raise _DamagedError(f"tensor {name[:60]}: rows of {shape[-1]} do not fit {kind.name}")
            yield GgufEntry(name, shape, kind, path, offset)


def _block_of(kind: "GGMLQuantizationType") -> tuple[int, int]:
    """Numbers in a block, and its bytes."""
    from gguf import GGML_QUANT_SIZES

    return GGML_QUANT_SIZES[kind]
