"""Parameters that exist only while a part of them is looked at."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True)
class StreamedArray:
    """Stands in for an array of parameters; each reading computes it anew, a layer at a time if it is a stack of them.

    `save_weights` and `export_huggingface` take it in the place of an array.

    Attributes:
        shape: of the array, with the axis of layers and with padding rows.
        dtype: of what is read.
        stacked: whether axis 0 counts layers.
        compute: `compute(layer, dtype)` gives one layer, or all of an array that is not stacked (layer None).
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    stacked: bool
    compute: Callable[[int | None, np.dtype], np.ndarray]

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        """Size in bytes that the whole array would have."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def is_fully_addressable(self) -> bool:
        """As of a jax.Array: every process can read all of it."""
        return True

    def astype(self, dtype: Any) -> "StreamedArray":
        """The same parameter, rounded to another dtype when it is read."""
        return dataclasses.replace(self, dtype=np.dtype(jnp.dtype(dtype)))

    def __getitem__(self, layer: int) -> np.ndarray:
        if not self.stacked:
            raise IndexError("not a stack of layers; numpy.asarray reads all of it")
        return self.compute(layer, self.dtype)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        whole = (
            np.stack([self[layer] for layer in range(self.shape[0])])
            if self.stacked
            else self.compute(None, self.dtype)
        )
        return whole if dtype is None else whole.astype(dtype)
