"""Reads and writes safetensors in pieces, so that memory never holds a second copy of a large directory.

The format: 8 bytes (the little-endian length N), N bytes of JSON ({name: {dtype, shape, data_offsets}}), then the raw
tensors, little-endian and row-major. A sharded directory has several such files and an index from tensor to file. The
`safetensors` package maps files into memory, where mapped pages count as resident, and writes whole dictionaries. This
module reads rows with pread, and writes rows one block after another.
"""

import dataclasses
import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from absl import logging

from allam_jax.checksums import FILE_LIST, hash_bytes
from allam_jax.errors import UserError
from allam_jax.files import read_json, refuse_pointer, write_json

DTYPES: dict[str, np.dtype] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
_DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_MAX_HEADER_BYTES = 100_000_000  # the reference implementation's limit

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"


@dataclasses.dataclass(frozen=True)
class _Tensor:
    name: str
    dtype: np.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclasses.dataclass(frozen=True)
class StoredTensor(_Tensor):
    """A tensor in a file: its bytes start at `offset` of `file`."""

    file: Path
    offset: int
    blocks: tuple[str, ...] = ()  # hashes of its blocks in order, where they are known

    def read_rows(self, *, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Reads the rows start..stop (along axis 0; all of a scalar) as `dtype`; UserError if the file is cut."""
        rows = self.shape[0] if self.shape else 1
        stop = rows if stop is None else stop
        array = np.empty((stop - start, *self.shape[1:]) if self.shape else (), self.dtype)
        read_into(array, self, position=self.offset + start * (self.nbytes // max(rows, 1)))
        return array


@dataclasses.dataclass(frozen=True)
class TensorToWrite(_Tensor):
    """A tensor that is not in memory: `blocks()` yields its rows in order, in blocks along axis 0."""

    blocks: Callable[[], Iterator[np.ndarray]]


def read_header(path: Path) -> dict[str, StoredTensor]:
    """The tensors of one file, by name.

    Raises:
        UserError: the file is missing or truncated, is not a safetensors file, or has a malformed header.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        if not path.is_file():  # a named pipe would be waited for
            raise UserError(f"{path}: is no regular file")
        with open(path, "rb") as file:
            refuse_pointer(path, file.read(40))
            file.seek(0)
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(size - 8, _MAX_HEADER_BYTES):
                raise UserError(f"{path}: truncated, or not a safetensors file (no complete header); fetch it again")
            raw = file.read(length)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    try:
        header = json.loads(raw, object_pairs_hook=_without_duplicates)
        header.pop("__metadata__", None)
        tensors = {name: _stored_tensor(path, 8 + length, name, entry) for name, entry in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path}: not a safetensors file (bad header: {error!r})") from None
    end = 8 + length
    for tensor in sorted(tensors.values(), key=lambda tensor: (tensor.offset, tensor.nbytes)):
        if tensor.offset != end:  # as the reference implementation demands: no overlap, no gap
            raise UserError(
                f"{path}: tensor {tensor.name} begins at byte {tensor.offset:,}, but the one before it ends at "
                f"{end:,}: tensors must neither overlap nor leave gaps; export it again"
            )
        end += tensor.nbytes
    if size != end:
        state = "truncated" if size < end else "too long"
        raise UserError(f"{path}: {state}: {size:,} bytes, but its header promises {end:,}; fetch it again")
    return tensors


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(name for name in names if names.count(name) > 1)!r} occurs twice")
    return found


def written_with_list(directory: Path) -> bool:
    """Whether a file here says that a list of checksums belongs to it, which may have been lost."""
    return any(f'"checksums":"{FILE_LIST}"'.encode() in _first_bytes(path) for path in directory.glob("*.safetensors"))


def _first_bytes(path: Path) -> bytes:
    with open(path, "rb") as file:
        return file.read(200)


def _stored_tensor(path: Path, data_start: int, name: str, entry: dict) -> StoredTensor:
    if entry["dtype"] not in DTYPES:
        raise UserError(f"{path}: tensor {name} has dtype {entry['dtype']}; supported are {', '.join(DTYPES)}")
    start, end = entry["data_offsets"]
    shape = tuple(int(size) for size in entry["shape"])
    tensor = StoredTensor(name, DTYPES[entry["dtype"]], shape, path, data_start + start)
    if start < 0 or min(shape, default=0) < 0 or end - start != tensor.nbytes:
        raise UserError(f"{path}: tensor {name}: offsets {start}..{end} do not fit {entry['dtype']} of shape {shape}")
    return tensor


def read_directory(directory: Path) -> dict[str, StoredTensor]:
    """The tensors of a directory with `model.safetensors`, or with shards and an index, by name.

    Raises:
        UserError: neither is there, there are only pickled weights, or the index does not agree with the shards.
    """
    directory = Path(directory)
    # A directory may have both, one of them from an earlier export. The single file comes first, as in transformers.
    if (directory / SINGLE_FILE).exists():
        if (directory / INDEX_FILE).exists():
            logging.warning("%s: %s is read; %s beside it is not", directory, SINGLE_FILE, INDEX_FILE)
        return read_header(directory / SINGLE_FILE)
    if (directory / INDEX_FILE).exists():
        return _read_indexed(directory)
    if any(directory.glob("*.bin")) or any(directory.glob("*.pt*")):
        raise UserError(
            f"{directory}: holds pickled weights only (.bin, .pt), which can run code when loaded; "
            "convert them to safetensors first"
        )
    others = sorted(path.name for path in directory.glob("*.safetensors"))
    found = f"; {others[0]} is a shard without its index, or of another format: fetch what is missing" if others else ""
    raise UserError(f"{directory}: no {SINGLE_FILE} and no {INDEX_FILE}{found}")


def _read_indexed(directory: Path) -> dict[str, StoredTensor]:
    index_path = directory / INDEX_FILE
    weight_map = read_json(index_path, keys={"weight_map": dict})["weight_map"]
    if not all(isinstance(file, str) for file in weight_map.values()):
        raise UserError(f"{index_path}: `weight_map` must map each tensor to the name of a file; fetch it again")
    tensors: dict[str, StoredTensor] = {}
    for file_name in sorted(set(weight_map.values())):
        if Path(file_name).name != file_name:
            raise UserError(f"{index_path}: shard {file_name!r} must be a plain file name")
        if not (directory / file_name).exists():
            raise UserError(
                f"{directory / file_name}: no such file, but {INDEX_FILE} lists it; fetch the missing shard"
            )
        for name, tensor in read_header(directory / file_name).items():
            if weight_map.get(name, file_name) != file_name:
                continue  # the index says in which file it counts
            if name in tensors:
                raise UserError(
                    f"{index_path}: does not list {name}, and both {tensors[name].file.name} and {file_name} have it"
                )
            tensors[name] = tensor
    absent = sorted(set(weight_map) - set(tensors))
    if absent:
        raise UserError(f"{index_path}: {len(absent)} listed tensors are in no shard, the first is {absent[0]}")
    return tensors


def read_into(array: np.ndarray, tensor: StoredTensor, *, position: int) -> None:
    """Fills an array with the bytes of a tensor's file from a position on; UserError if the file is cut."""
    view = array.reshape(-1).view(np.uint8).data
    with open(tensor.file, "rb", buffering=0) as file:
        done = 0
        while done < len(view):
            count = os.preadv(file.fileno(), [view[done : done + (1 << 30)]], position + done)
            if count == 0:
                raise UserError(f"{tensor.file}: truncated inside tensor {tensor.name}; fetch it again")
            done += count


def write_directory(directory: Path, tensors: Sequence[TensorToWrite], *, max_shard_bytes: int) -> dict[str, list[str]]:
    """Writes `model.safetensors`, or shards and their index if the tensors exceed `max_shard_bytes`.

    Tensors keep their order. A shard ends before the tensor that would exceed the limit. The function is not atomic by
    itself; give it a temporary directory.

    Returns:
        for each tensor, the hashes of its blocks.
    """
    directory = Path(directory)
    shards: list[list[TensorToWrite]] = [[]]
    size = 0
    for tensor in tensors:
        if shards[-1] and size + tensor.nbytes > max_shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(tensor)
        size += tensor.nbytes
    if len(shards) == 1:
        return _write_file(directory / SINGLE_FILE, shards[0])
    names = [f"model-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)]
    hashes: dict[str, list[str]] = {}
    for name, shard in zip(names, shards, strict=True):
        hashes |= _write_file(directory / name, shard)
    weight_map = {tensor.name: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
    total = sum(tensor.nbytes for tensor in tensors)
    write_json(directory / INDEX_FILE, {"metadata": {"total_size": total}, "weight_map": weight_map})
    return hashes


def _write_file(path: Path, tensors: Sequence[TensorToWrite]) -> dict[str, list[str]]:
    header: dict[str, dict] = {"__metadata__": {"format": "pt", "checksums": FILE_LIST}}
    offset = 0
    for tensor in tensors:
        header[tensor.name] = {
            "dtype": _DTYPE_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + tensor.nbytes],
        }
        offset += tensor.nbytes
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)  # so that the data starts at a multiple of 8 bytes
    with open(path, "wb") as file:
        file.write(len(raw).to_bytes(8, "little"))
        file.write(raw)
        hashes: dict[str, list[str]] = {}
        for tensor in tensors:
            written = 0
            hashes[tensor.name] = []
            for block in tensor.blocks():
                if block.dtype != tensor.dtype or block.shape[1:] != tensor.shape[1:]:
                    raise ValueError(f"{tensor.name}: block {block.dtype}{block.shape} of {tensor.dtype}{tensor.shape}")
                content = np.ascontiguousarray(block).reshape(-1).view(np.uint8).data
                hashes[tensor.name].append(hash_bytes(content))
                written += file.write(content)
            if written != tensor.nbytes:
                raise ValueError(f"{tensor.name}: wrote {written} bytes of {tensor.nbytes}")
    return hashes
