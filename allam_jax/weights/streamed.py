"""Parameters that exist only while a part of them is being read."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True)
class StreamedArray:
    """Takes the place of an array in `save_weights` and `export_huggingface`; each reading computes its values anew.

    A stack of layers is computed one layer at a time: `compute(layer, dtype)` returns one layer, or the whole of an
    array that is not stacked (layer None).
    """

    shape: tuple[int, ...]  # with the layer axis and with padding rows
    dtype: np.dtype  # of the values that are read
    stacked: bool  # whether axis 0 counts layers
    compute: Callable[[int | None, np.dtype], np.ndarray]

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        """Size in bytes of the whole array, if it were in memory."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def is_fully_addressable(self) -> bool:
        """True: like a jax.Array of one process, every process can read all of it."""
        return True

    def astype(self, dtype: Any) -> "StreamedArray":
        """The same parameter, rounded to another dtype on each reading."""
        return dataclasses.replace(self, dtype=np.dtype(jnp.dtype(dtype)))

    def __getitem__(self, layer: int) -> np.ndarray:
        if not self.stacked:
            raise IndexError("this array is not a stack of layers; read all of it with numpy.asarray")
        return self.compute(layer, self.dtype)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if self.stacked:
            whole = np.stack([self[layer] for layer in range(self.shape[0])])
        else:
            whole = self.compute(None, self.dtype)
        return whole if dtype is None else whole.astype(dtype)
