"""The device mesh, and how a batch lies on it.

A mesh is an ordered mapping from the names of axes to their sizes. `MESH_AXES` is the only list of the names:

  data    replicas of the parameters; gradients are summed over it
  fsdp    shards of the parameters, gathered layer by layer; it also cuts the batch
  tensor  cuts heads, feed-forward width and vocabulary of one layer

`parallel/sharding.py` says which arrays each axis cuts.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from allam_jax.errors import UserError
from allam_jax.parallel.sharding import DEFAULT_RULES, pieces

MESH_AXES = ("data", "fsdp", "tensor")  # from the slowest network to the fastest


def make_mesh(sizes: Mapping[str, int], *, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Arranges the devices of all processes in a mesh.

    On GPU and CPU the devices are taken in the order of processes. The inner axes stay inside a host as long as their
    product divides its device count; only the outer ones cross the network. On TPU, JAX lays the axes along the torus,
    and the first one across slices.

    Args:
        sizes: of the axes, as for `mesh_shape`.
        devices: all of them by default.

    Raises:
        UserError: the sizes do not multiply to the number of devices.
    """
    devices = list(jax.devices() if devices is None else devices)
    shape = mesh_shape(sizes, device_count=len(devices))
    if devices[0].platform == "tpu":
        grid = _tpu_grid(shape, devices)
    else:
        by_process = sorted(devices, key=lambda device: (device.process_index, device.id))
        grid = np.array(by_process, dtype=object).reshape(tuple(shape.values()))
    return Mesh(grid, tuple(shape), axis_types=(AxisType.Auto,) * len(shape))


def abstract_mesh(sizes: Mapping[str, int]) -> AbstractMesh:
    """A mesh of this shape without devices, for counting."""
    return AbstractMesh(tuple(sizes.values()), tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes))


def mesh_shape(sizes: Mapping[str, int], *, device_count: int) -> dict[str, int]:
    """The size of every axis, in the order of `MESH_AXES`.

    Args:
        sizes: by the names of axes, in any order. An axis without a size has 1. One size may be -1: whatever the others
            leave.
        device_count: what the sizes must multiply to.

    Raises:
        UserError: an unknown axis, a size that is no number of devices, or sizes that do not multiply to the count.
    """
    asked = ", ".join(f"mesh.{axis}={size}" for axis, size in sizes.items())
    if unknown := [axis for axis in sizes if axis not in MESH_AXES]:
        raise UserError(f"{asked}: a mesh has no axis {unknown[0]!r}; expected {', '.join(MESH_AXES)}")
    shape = {axis: sizes.get(axis, 1) for axis in MESH_AXES}
    if any(size < 1 and size != -1 for size in shape.values()):
        raise UserError(f"{asked}: each size is a positive number, or -1 for the rest of the {device_count} device(s)")
    open_axes = [axis for axis, size in shape.items() if size == -1]
    if len(open_axes) > 1:
        raise UserError(f"{asked}: at most one size may be -1; set {' or '.join(open_axes)} to a number")
    fixed = math.prod(size for size in shape.values() if size != -1)
    if open_axes:
        if device_count % fixed:
            raise UserError(
                f"{asked}: the given sizes multiply to {fixed}, which does not divide the {device_count} device(s); "
                f"choose sizes whose product divides {device_count}"
            )
        shape[open_axes[0]] = device_count // fixed
    elif fixed != device_count:
        raise UserError(
            f"{asked}: the sizes multiply to {fixed}, but there are {device_count} device(s); "
            f"choose sizes that multiply to {device_count}, or give one as -1"
        )
    return shape


def _tpu_grid(shape: Mapping[str, int], devices: Sequence[Any]) -> np.ndarray:
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    (outer, outer_size), *inner = shape.items()
    if outer_size % slices:
        raise UserError(f"mesh.{outer}={outer_size}: must be a multiple of the number of TPU slices, {slices}")
    within = (outer_size // slices, *(size for _, size in inner))
    if slices == 1:
        return mesh_utils.create_device_mesh(within, devices, allow_split_physical_axes=True)
    across = (slices, *(1 for _ in inner))
    return mesh_utils.create_hybrid_device_mesh(within, across, devices, allow_split_physical_axes=True)


def batch_sharding(mesh: Mesh | AbstractMesh) -> NamedSharding:
    """The sharding of `[B, T]` arrays: rows are cut as the table says for "batch", positions are not."""
    return NamedSharding(mesh, PartitionSpec(DEFAULT_RULES.mesh_axes("batch")))


def check_batch(
    global_batch: int, *, accumulation: int, mesh: Mesh | AbstractMesh, key: str = "data.batch_size"
) -> None:
    """UserError (naming the config key) unless every device gets the same number of whole rows of every microbatch."""
    shards = pieces("batch", mesh.shape)
    unit = shards * accumulation
    if global_batch > 0 and global_batch % unit == 0:
        return
    below = global_batch // unit * unit
    nearest = [str(size) for size in (below, below + unit) if size > 0]
    cut_over = " x ".join(f"{axis} {mesh.shape[axis]}" for axis in DEFAULT_RULES.mesh_axes("batch"))
    raise UserError(
        f"config.{key} = {global_batch} is not a multiple of {unit} = {accumulation} microbatch(es) x {shards} batch "
        f"shard(s) (mesh {cut_over}); the nearest that fit: {', '.join(nearest)}"
    )


def split_microbatches(batch: Any, *, accumulation: int) -> Any:
    """Cuts every `[B, ...]` array of a tree into `[A, B/A, ...]`: microbatch `a` holds rows `a, a + A, a + 2A, ...`.

    The rows are strided because a device holds contiguous rows: each device then cuts its own, and no row moves between
    devices. Which rows form a microbatch depends on `accumulation` alone, never on the mesh.
    """

    def split(x: Any) -> Any:
        rows, *rest = x.shape
        return x.reshape(rows // accumulation, accumulation, *rest).swapaxes(0, 1)

    return jax.tree.map(split, batch)
