"""Parts of the arrays of an Orbax checkpoint, read and written without the rest.

Orbax keeps each array of a tree as a Zarr array, cut into chunks, in one OCDBT key-value store a directory, and reads
and writes whole trees. Here TensorStore, which Orbax is built on, opens single arrays. A chunk is the least that can
be read; unless told otherwise, Orbax makes one of a whole array.
"""

import itertools
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts

from allam_jax.errors import UserError
from allam_jax.parallel.distributed import barrier, is_main_process
from allam_jax.weights.orbax_logs import quiet_orbax

CHUNK_BYTES = 32 << 20


def save_args(tree: Any) -> Any:
    """Orbax's arguments for each array of a tree: chunks of a few megabytes, of one layer where layers are stacked.

    Stacked matrices have more than two axes. Arrays that are smaller than a chunk are left in one piece.
    """

    def leaf_args(leaf: Any) -> ocp.SaveArgs:
        if leaf.nbytes <= CHUNK_BYTES:
            return ocp.SaveArgs()
        return ocp.SaveArgs(chunk_byte_size=CHUNK_BYTES, shard_axes=(0,) if leaf.ndim > 2 else ())

    return jax.tree.map(leaf_args, tree)


def open_array(folder: Path, name: str, *, context: ts.Context | None = None, write: bool = False) -> ts.TensorStore:
    """Opens one array of an Orbax checkpoint.

    Args:
        folder: what Orbax has written.
        name: the keys of the array in the tree, joined by dots.
        context: its `cache_pool` keeps chunks that will be read again; None keeps none.
        write: whether it will be written to.

    Raises:
        UserError: it is not there, or damaged.
    """
    base = {"driver": "file", "path": f"{Path(folder).absolute()}/"}
    spec = {"driver": "zarr", "kvstore": {"driver": "ocdbt", "base": base, "path": f"{name}/"}}
    try:
        return ts.open(spec, open=True, read=True, write=write, context=context, recheck_cached_data=False).result()
    except (ValueError, RuntimeError, OSError) as error:
        raise _unreadable(folder, name, error) from error


def read_part(array: ts.TensorStore, index: tuple[int | slice, ...], *, folder: Path, name: str) -> np.ndarray:
    """`array[index]` in the stored dtype; UserError (naming `folder` and `name`) if its chunks are damaged."""
    try:
        return array[index].read().result()
    except (ValueError, RuntimeError, OSError) as error:
        raise _unreadable(folder, name, error) from error


def chunk_shape(array: ts.TensorStore) -> tuple[int, ...]:
    """The shape of the chunks that `array` is stored in."""
    shape = array.chunk_layout.read_chunk.shape
    assert shape is not None
    return tuple(int(size or 1) for size in shape)


def write_arrays(folder: Path, tree: Any) -> None:
    """Writes a tree of `StreamedArray` as an Orbax checkpoint, a layer at a time. All processes must call it.

    Orbax itself lays the checkpoint out, from zeros that take no memory; then the chunks get their values.

    Args:
        folder: created.
        tree: nested dict of StreamedArray.

    Raises:
        ValueError: the disk refused, for a reason that Orbax and TensorStore give in words.
    """
    quiet_orbax()
    zeros = jax.tree.map(lambda leaf: np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape), tree)
    handler = ocp.type_handlers.NumpyHandler(deepcopy_host_arrays=False)
    registry = ocp.type_handlers.create_type_handler_registry((np.ndarray, handler))
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(type_handler_registry=registry)) as checkpointer:
        checkpointer.save(Path(folder).absolute(), args=ocp.args.PyTreeSave(zeros, save_args=save_args(tree)))
    barrier(f"laid out {folder}")
    if not is_main_process():
        return
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array = open_array(folder, jax.tree_util.keystr(path, simple=True, separator="."), write=True)
        chunk = chunk_shape(array)
        if leaf.stacked and chunk[0] == 1:
            for layer in range(leaf.shape[0]):
                _write(array[layer], leaf[layer], chunk=chunk[1:])
        else:
            _write(array, np.asarray(leaf), chunk=chunk)


def _write(array: ts.TensorStore, values: np.ndarray, *, chunk: tuple[int, ...]) -> None:
    """Chunk by chunk, each on disk before the next: what waits to be written is in memory twice."""
    ranges = (
        [slice(start, min(start + step, size)) for start in range(0, size, step)]
        for size, step in zip(values.shape, chunk, strict=True)
    )
    for part in itertools.product(*ranges):
        array[part].write(values[part]).result()


def _unreadable(folder: Path, name: str, error: Exception) -> UserError:
    reason = str(error).strip().splitlines()[0][:200]
    return UserError(f"{folder}: array {name} cannot be read ({reason}); copy or export it again")
