"""Parameters on disk that are read in blocks, with one interface for Hugging Face directories and Orbax checkpoints.

The unit is the piece (pieces.py): one layer of a parameter, or a table. A block is a range of a piece's block
axis, in our axes and without padding rows. It is the same in both formats, so blocks of models in different formats can
be combined. Memory holds one block of each model and, for an Orbax checkpoint, the chunks around it.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import tensorstore as ts

from allam_jax.model.llama_config import LlamaConfig
from allam_jax.weights.huggingface import open_huggingface, parameter_dtype, read_block
from allam_jax.weights.orbax_arrays import chunk_shape, open_array, read_part
from allam_jax.weights.pieces import Piece, pieces_of

ParameterPath = tuple[str, ...]  # the keys that lead to a parameter in the tree


@dataclasses.dataclass(frozen=True)
class StoredParameter:
    """One parameter on disk.

    `read(piece, first, last)` reads the range first..last of the block axis of one of its pieces, in the stored dtype.
    """

    dtype: np.dtype  # the narrowest that holds all of it
    read: Callable[[Piece, int, int], np.ndarray]


StoredParameters = Mapping[ParameterPath, StoredParameter]


def huggingface_parameters(directory: Path) -> tuple[StoredParameters, LlamaConfig]:
    """Opens a Llama directory; raises as `import_huggingface` does."""
    config, stored = open_huggingface(directory)

    def read(piece: Piece, first: int, last: int) -> np.ndarray:
        return read_block(piece, stored[piece.name], first=first, last=last)

    parameters = {
        path: StoredParameter(parameter_dtype([stored[piece.name] for piece in pieces], None), read)
        for path, pieces in pieces_of(config).items()
    }
    return parameters, config


def orbax_parameters(folder: Path, *, config: LlamaConfig, under: ParameterPath = ()) -> StoredParameters:
    """Opens the parameters of an Orbax checkpoint that are known to fit `config`.

    Args:
        folder: directory that Orbax wrote.
        config: the architecture.
        under: the keys in the tree that lead to the parameters.
    """
    pieces = pieces_of(config)
    names = {path: ".".join((*under, *path)) for path in pieces}
    held = max(_held_bytes(open_array(folder, name), pieces[path][0]) for path, name in names.items())
    context = ts.Context({"cache_pool": {"total_bytes_limit": held}})  # shared, because arrays are read one by one
    return {path: _orbax_parameter(folder, name, context=context) for path, name in names.items()}


def _orbax_parameter(folder: Path, name: str, *, context: ts.Context) -> StoredParameter:
    array = open_array(folder, name, context=context)

    def read(piece: Piece, first: int, last: int) -> np.ndarray:
        ranges = [slice(0, size) for size in piece.shape]  # without padding rows
        ranges[piece.block_axis] = slice(first, last)
        index: tuple[int | slice, ...] = tuple(ranges) if piece.layer is None else (piece.layer, *ranges)
        return read_part(array, index, folder=folder, name=name)

    return StoredParameter(np.dtype(array.dtype.numpy_dtype), read)


def _held_bytes(array: ts.TensorStore, piece: Piece) -> int:
    """The bytes of the chunks that must stay in memory so that no chunk of the array is read twice.

    These are the chunks around one block; if a chunk holds several layers, those around all of these layers.
    """
    chunk = chunk_shape(array)
    layers, inner = (1, chunk) if piece.layer is None else (chunk[0], chunk[1:])
    sizes = [-(-size // step) * step for size, step in zip(piece.shape, inner, strict=True)]
    if layers == 1:
        sizes[piece.block_axis] = inner[piece.block_axis]
    return layers * math.prod(sizes) * np.dtype(array.dtype.numpy_dtype).itemsize
