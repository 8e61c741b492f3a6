"""Reads and writes single arrays of an Orbax checkpoint, and parts of them.

Orbax reads and writes whole trees of arrays. It keeps each array as a Zarr array, cut into chunks, in one OCDBT
key-value store for each directory. This module opens single arrays with TensorStore, on which Orbax is built. A chunk
is the smallest part that can be read; by default, Orbax makes one chunk of a whole array.
"""

import contextlib
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts

from allam_jax.checksums import hash_bytes
from allam_jax.errors import UserError
from allam_jax.parallel.distributed import barrier, is_main_process
from allam_jax.weights.orbax_logs import quiet_orbax

CHUNK_BYTES = 32 << 20


def flatten(tree: Any) -> dict[tuple[str, ...], Any]:
    """The arrays of a nested dict (or their descriptions) by path, which is the tuple of their keys."""
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda leaf: hasattr(leaf, "shape"))
    return {tuple(key.key for key in path): leaf for path, leaf in leaves}


def path_of(keys: tuple[Any, ...]) -> str:
    """The name under which Orbax stores the array at a key path of a tree: its keys, joined by dots."""
    return jax.tree_util.keystr(keys, simple=True, separator=".")


def save_args(tree: Any) -> Any:
    """Orbax's arguments for each array of a tree: chunks of at most `CHUNK_BYTES`.

    A chunk of stacked matrices, which are the arrays with more than two axes, holds one layer.
    """

    def leaf_args(leaf: Any) -> ocp.SaveArgs:
        if leaf.nbytes <= CHUNK_BYTES:
            return ocp.SaveArgs()
        return ocp.SaveArgs(chunk_byte_size=CHUNK_BYTES, shard_axes=(0,) if leaf.ndim > 2 else ())

    return jax.tree.map(leaf_args, tree)


def open_array(folder: Path, name: str, *, context: ts.Context | None = None, write: bool = False) -> ts.TensorStore:
    """Opens one array of an Orbax checkpoint.

    Args:
        folder: directory that Orbax wrote.
        name: the keys of the array in the tree, joined by dots.
        context: its `cache_pool` keeps chunks that will be read again; None keeps none.
        write: whether the array will be written to.

    Raises:
        UserError: the array is missing or damaged.
    """
    base = {"driver": "file", "path": f"{Path(folder).absolute()}/"}
    spec = {"driver": "zarr", "kvstore": {"driver": "ocdbt", "base": base, "path": f"{name}/"}}
    with reading(f"{folder}: array {name}"):
        return ts.open(spec, open=True, read=True, write=write, context=context, recheck_cached_data=False).result()


def read_part(array: ts.TensorStore, index: tuple[int | slice, ...], *, folder: Path, name: str) -> np.ndarray:
    """`array[index]` in the stored dtype; UserError (naming `folder` and `name`) if its chunks are damaged."""
    with reading(f"{folder}: array {name}"):
        return array[index].read().result()


def chunk_shape(array: ts.TensorStore) -> tuple[int, ...]:
    """The shape of the chunks in which `array` is stored."""
    shape = array.chunk_layout.read_chunk.shape
    assert shape is not None
    return tuple(int(size or 1) for size in shape)


def write_arrays(folder: Path, tree: Any) -> dict[str, list[list[Any]]]:
    """Writes a nested dict of `StreamedArray` as an Orbax checkpoint into a new `folder`, one layer at a time.

    All processes must call it. Orbax lays out the checkpoint from zeros that take no memory; then the main process
    writes the chunks. Returns the checksums of the arrays (`array_checksums.py`) in the main process.

    Raises:
        ValueError: the disk refuses the write; the message has the reason.
    """
    quiet_orbax()
    zeros = jax.tree.map(lambda leaf: np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape), tree)
    handler = ocp.type_handlers.NumpyHandler(deepcopy_host_arrays=False)
    registry = ocp.type_handlers.create_type_handler_registry((np.ndarray, handler))
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(type_handler_registry=registry)) as checkpointer:
        checkpointer.save(Path(folder).absolute(), args=ocp.args.PyTreeSave(zeros, save_args=save_args(tree)))
    barrier(f"laid out {folder}")
    if not is_main_process():
        return {}
    checksums: dict[str, list[list[Any]]] = {}
    for path, leaf in flatten(tree).items():
        name = ".".join(path)
        array = open_array(folder, name, write=True)
        chunk = chunk_shape(array)
        if leaf.stacked and chunk[0] == 1:
            checksums[name] = [
                [layer, layer + 1, *box]
                for layer in range(leaf.shape[0])
                for box in _write(array[layer], leaf[layer], chunk=chunk[1:])
            ]
        else:
            checksums[name] = list(_write(array, np.asarray(leaf), chunk=chunk))
    return checksums


def hash_box(values: np.ndarray) -> str:
    """The hash of values in row-major order."""
    return hash_bytes(np.ascontiguousarray(values).reshape(-1).view(np.uint8).data)


def _write(array: ts.TensorStore, values: np.ndarray, *, chunk: tuple[int, ...]) -> Iterator[list[Any]]:
    """Writes one chunk after another: a chunk that waits for the disk is in memory twice. Yields boxes and hashes."""
    ranges = (
        [slice(start, min(start + step, size)) for start in range(0, size, step)]
        for size, step in zip(values.shape, chunk, strict=True)
    )
    for part in itertools.product(*ranges):
        found = hash_box(values[part])
        array[part].write(values[part]).result()
        yield [*itertools.chain(*((axis.start, axis.stop) for axis in part)), found]


@contextlib.contextmanager
def reading(what: str, *, remedy: str = "copy or export it again") -> Iterator[None]:
    """Turns errors of files of Orbax into a UserError with the first line of the reason; `what` begins the message."""
    try:
        yield
    except (jax.errors.JaxRuntimeError, MemoryError):  # such as: out of memory on a device
        raise
    except Exception as error:  # for damaged files, Orbax raises Exception itself
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise UserError(f"{what} cannot be read ({reason}); {remedy}") from error
