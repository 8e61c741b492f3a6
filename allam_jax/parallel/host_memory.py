"""Whether arrays fit into the memory of this machine where the devices are CPUs: Linux kills what takes more, mute."""

import math
import os
from typing import Any

import jax

from allam_jax.errors import UserError


def check_memory(
    arrays: Any,
    *,
    what: str = "the model's parameters",
    remedy: str = "use a machine with more memory, or with GPUs",
) -> None:
    """UserError if the CPU devices of this process need more than all of the machine's memory for these arrays.

    Args:
        arrays: pytree of `jax.ShapeDtypeStruct` with shardings; nothing is allocated.
        what: the arrays, for the message.
        remedy: what to do instead.
    """
    needed, there = sum(map(_bytes_on_cpus, jax.tree.leaves(arrays))), memory_bytes()
    if needed > there:
        raise UserError(f"{what} alone need {_gib(needed)}, but this machine has {_gib(there)} of memory; {remedy}")


def memory_bytes() -> int:
    """All memory of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _bytes_on_cpus(array: Any) -> int:
    indices = array.sharding.addressable_devices_indices_map(array.shape)
    shards = {str(index) for device, index in indices.items() if device.platform == "cpu"}
    return len(shards) * math.prod(array.sharding.shard_shape(array.shape)) * array.dtype.itemsize


def _gib(size: float) -> str:
    return f"{size / 2**30:.1f} GiB"
