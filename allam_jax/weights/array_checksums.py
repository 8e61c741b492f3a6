"""Checksums of arrays in memory, which hold on any mesh: taken before they are written, compared after they are read.

A *box* is a range of each axis of an array. Each process hashes the boxes of its own shards, cut along the first axis
into pieces of some megabytes, so the checksum of an array is a list of `[start, stop, ..., hash]` that covers it once.
After a restore onto any mesh, each process compares the boxes that its shards overlap. It has most boxes in memory. A
box of which other processes hold a part is read from disk for that alone.
"""

import itertools
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from allam_jax.errors import UserError
from allam_jax.parallel.distributed import gather
from allam_jax.weights.orbax_arrays import hash_box, open_array, path_of, read_part

BOX_BYTES = 16 << 20
_CHUNK = 1 << 16  # values whose temporaries stay in the cache
Box = tuple[tuple[int, int], ...]  # (start, stop) on each axis
ArrayChecksums = dict[str, list[list[Any]]]  # name of an array -> its boxes


def array_checksums(tree: Any) -> ArrayChecksums:
    """The checksums of the jax arrays of a tree, by their names in Orbax; all processes must call it.

    Returns when no array is needed any more.
    """
    todo = [
        (path_of(keys), box, shard)
        for keys, leaf in jax.tree_util.tree_leaves_with_path(tree)
        for shard in _own_shards(leaf)
        for box in _pieces(_box(shard.index, leaf.shape), shard.data.nbytes)
    ]
    with _pool() as pool:
        hashes = pool.map(lambda item: hash_box(_part(item[2], item[1])), todo)
        own: ArrayChecksums = {}
        for (name, box, _), found in zip(todo, hashes, strict=True):
            own.setdefault(name, []).append([*itertools.chain(*box), found])
    merged: ArrayChecksums = {}
    for part in gather(own):
        for name, boxes in part.items():
            merged.setdefault(name, []).extend(boxes)
    return merged


def check_arrays(tree: Any, checksums: Mapping[str, list[list[Any]]], *, folder: Path, remedy: str) -> None:
    """UserError (in every process) if arrays that were read from the Orbax `folder` are not those that were hashed.

    All processes must call it. Arrays without checksums are not checked.

    Args:
        tree: of jax arrays, in the dtypes in which they were written, on any mesh.
        checksums: of `array_checksums`; arrays that the tree lacks do not matter.
        folder: is named, and read where boxes are spread over processes.
        remedy: ends the message.
    """
    named = [(path_of(keys), leaf) for keys, leaf in jax.tree_util.tree_leaves_with_path(tree)]
    todo = [(name, leaf, _Stored(stored)) for name, leaf in named for stored in checksums.get(name, ())]

    def differs(item: tuple[str, Any, "_Stored"]) -> bool:
        name, leaf, stored = item
        values = _values(leaf, stored.box)
        if values is not None and values.size == 0 < _size(stored.box):
            return False  # other processes hold it
        if values is None:
            index = tuple(slice(start, stop) for start, stop in stored.box)
            values = read_part(open_array(folder, name), index, folder=folder, name=name)
        return hash_box(values) != stored.hash

    with _pool() as pool:
        wrong = [item[0] for item, different in zip(todo, pool.map(differs, todo), strict=True) if different]
    wrong += [name for name, leaf in named if name in checksums and not _covered(leaf.shape, checksums[name])]
    everywhere = sorted({name for part in gather(wrong) for name in part})
    if everywhere:
        names = ", ".join(everywhere[:3]) + (f" and {len(everywhere) - 3} more" if len(everywhere) > 3 else "")
        raise UserError(f"{folder}: the values of {names} are not those that were saved (xxh3); {remedy}")


def check_finite(tree: Any, *, where: str) -> None:
    """UserError (in every process, naming `where` and the array) unless all values of the jax arrays are finite.

    All processes must call it.
    """
    todo = [
        (path_of(keys), part)
        for keys, leaf in jax.tree_util.tree_leaves_with_path(tree)
        for shard in _own_shards(leaf)
        for part in _parts_on_host(shard)
    ]
    with _pool() as pool:
        finite = pool.map(lambda item: _all_finite(item[1]), todo)
        wrong = [name for (name, _), fine in zip(todo, finite, strict=True) if not fine]
    everywhere = sorted({name for part in gather(wrong) for name in part})
    if everywhere:
        more = f" and {len(everywhere) - 1} more" if len(everywhere) > 1 else ""
        raise UserError(f"{where}: {everywhere[0]}{more} {NOT_FINITE}")


NOT_FINITE = (
    "has values that are NaN or infinite (or too large for its dtype); use a model or checkpoint from before they "
    "arose, or a dtype with a larger range"
)


def _parts_on_host(shard: Any) -> Iterable[jax.Array | np.ndarray]:
    """A shard in pieces for several threads; whole where a device looks through it."""
    if not _on_host(shard.data):
        return (shard.data,)
    flat = np.asarray(shard.data).reshape(-1)
    return np.array_split(flat, max(1, flat.nbytes // BOX_BYTES))


def _all_finite(data: jax.Array | np.ndarray) -> bool:
    if isinstance(data, jax.Array):
        return bool(jnp.isfinite(data).all())
    return all(all_finite(data[first : first + _CHUNK]) for first in range(0, data.size, _CHUNK))


def all_finite(values: np.ndarray) -> bool:
    """Whether no value is NaN or infinite; fast also for 16-bit floats, which NumPy handles slowly or not at all."""
    if values.dtype.itemsize != 2:
        return not jnp.issubdtype(values.dtype, jnp.floating) or bool(np.isfinite(values).all())
    exponent = np.uint16(0x7C00 if values.dtype == np.float16 else 0x7F80)
    return not bool(((values.view(np.uint16) & exponent) == exponent).any())


class _Stored:
    """A stored entry, taken apart."""

    def __init__(self, stored: list[Any]):
        *edges, self.hash = stored
        self.box: Box = tuple(zip(edges[::2], edges[1::2], strict=True))


def _own_shards(array: jax.Array) -> Iterator[Any]:
    """The shards that this process, and no other, answers for."""
    return (shard for shard in array.addressable_shards if shard.replica_id == 0)


def _on_host(data: jax.Array) -> bool:
    return all(device.platform == "cpu" for device in data.devices())


def _part(shard: Any, box: Box) -> np.ndarray:
    """A box of the whole array that lies within a shard; a view where the shard is in the host's memory."""
    origins = [part.start or 0 for part in shard.index]
    if _on_host(shard.data):
        return np.asarray(shard.data)[_slices(box, origins)]
    # An array of its own: JAX would keep the host's copy of the whole shard as long as the shard lives.
    starts = [start - origin for (start, _), origin in zip(box, origins, strict=True)]
    return np.asarray(jax.lax.dynamic_slice(shard.data, starts, [stop - start for start, stop in box]))


def _box(index: tuple[slice, ...], shape: tuple[int, ...]) -> Box:
    return tuple(part.indices(size)[:2] for part, size in zip(index, shape, strict=True))


def _pieces(box: Box, nbytes: int) -> Iterator[Box]:
    """Cuts the box of a shard along its first axis."""
    if nbytes <= BOX_BYTES or not box:
        yield box
        return
    (start, stop), *rest = box
    step = max(1, BOX_BYTES * (stop - start) // nbytes)
    for first in range(start, stop, step):
        yield ((first, min(first + step, stop)), *rest)


def _values(array: jax.Array, box: Box) -> np.ndarray | None:
    """The part of an array in a box: None if other processes hold some of it, empty if they hold all of it."""
    parts: dict[Box, np.ndarray] = {}
    for shard in array.addressable_shards:
        whole = _box(shard.index, array.shape)
        overlap = tuple((max(a, c), min(b, d)) for (a, b), (c, d) in zip(box, whole, strict=True))
        if overlap in parts or any(start >= stop for start, stop in overlap):
            continue
        parts[overlap] = _part(shard, overlap)
        if overlap == box:
            return parts[overlap]
    if not parts:
        return np.empty(0, array.dtype)
    if sum(part.size for part in parts.values()) < _size(box):
        return None
    found = np.empty([stop - start for start, stop in box], array.dtype)
    for overlap, part in parts.items():
        found[_slices(overlap, [start for start, _ in box])] = part
    return found


def _slices(box: Box, origins: Iterable[int]) -> tuple[slice, ...]:
    return tuple(slice(start - origin, stop - origin) for (start, stop), origin in zip(box, origins, strict=True))


def _covered(shape: tuple[int, ...], stored: list[list[Any]]) -> bool:
    """Whether the boxes, which do not overlap, are all of an array of this shape."""
    return sum(_size(_Stored(one).box) for one in stored) == math.prod(shape)


def _size(box: Box) -> int:
    return math.prod([stop - start for start, stop in box])


def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(min(16, os.cpu_count() or 1))
