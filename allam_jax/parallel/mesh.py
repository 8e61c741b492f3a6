"""The device mesh, and how a batch lies on it.

Axes, from the slowest network to the fastest:

  data    replicas of the parameters; gradients are summed over it
  fsdp    shards of the parameters, gathered layer by layer; also splits the batch
  tensor  splits heads, feed-forward width and vocabulary of one layer
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from allam_jax.errors import UserError

MESH_AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")


def make_mesh(*, data: int, fsdp: int, tensor: int, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Arranges the devices of all processes in a mesh with axes `data`, `fsdp`, `tensor`.

    One size may be -1: whatever the others leave. On GPU and CPU devices are taken in the order of processes, so the
    inner axes stay inside a host as long as their product divides its device count and only the outer ones cross the
    network. On TPU, JAX lays the axes along the torus, and `data` across slices.

    Raises:
        UserError: the sizes do not multiply to the number of devices.
    """
    devices = list(jax.devices() if devices is None else devices)
    sizes = tuple(mesh_shape(data=data, fsdp=fsdp, tensor=tensor, device_count=len(devices)).values())
    if devices[0].platform == "tpu":
        grid = _tpu_grid(sizes, devices)
    else:
        by_process = sorted(devices, key=lambda device: (device.process_index, device.id))
        grid = np.array(by_process, dtype=object).reshape(sizes)
    return Mesh(grid, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def mesh_shape(*, data: int, fsdp: int, tensor: int, device_count: int) -> dict[str, int]:
    """The size of each axis of the mesh of `make_mesh`, in their order; UserError as there."""
    sizes = {"data": data, "fsdp": fsdp, "tensor": tensor}
    asked = ", ".join(f"mesh.{axis}={size}" for axis, size in sizes.items())
    if any(size < 1 and size != -1 for size in sizes.values()):
        raise UserError(f"{asked}: each size is a positive number, or -1 for the rest of the {device_count} device(s)")
    open_axes = [axis for axis, size in sizes.items() if size == -1]
    if len(open_axes) > 1:
        raise UserError(f"{asked}: at most one size may be -1; set {' or '.join(open_axes)} to a number")
    fixed = math.prod(size for size in sizes.values() if size != -1)
    if open_axes:
        if device_count % fixed:
            raise UserError(
                f"{asked}: the given sizes multiply to {fixed}, which does not divide the {device_count} device(s); "
                f"choose sizes whose product divides {device_count}"
            )
        sizes = sizes | {open_axes[0]: device_count // fixed}
    elif fixed != device_count:
        raise UserError(
            f"{asked}: the sizes multiply to {fixed}, but there are {device_count} device(s); "
            f"choose sizes that multiply to {device_count}, or give one as -1"
        )
    return sizes


def _tpu_grid(sizes: tuple[int, ...], devices: Sequence[Any]) -> np.ndarray:
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if slices == 1:
        return mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    data, *inner = sizes
    if data % slices:
        raise UserError(f"mesh.data={data}: must be a multiple of the number of TPU slices, {slices}")
    return mesh_utils.create_hybrid_device_mesh(
        (data // slices, *inner), (slices, 1, 1), devices, allow_split_physical_axes=True
    )


def batch_shards(mesh: Mesh | AbstractMesh) -> int:
    """Into how many pieces the rows of a batch are cut."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def batch_sharding(mesh: Mesh | AbstractMesh) -> NamedSharding:
    """The sharding of `[B, T]` arrays: rows over `data` and `fsdp`, whole rows on each device."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def check_batch(global_batch: int, *, accumulation: int, mesh: Mesh | AbstractMesh) -> None:
    """UserError unless every device gets the same number of whole rows of every microbatch."""
    if accumulation < 1:
        raise UserError(f"gradient accumulation is {accumulation}: expected a number of microbatches, at least 1")
    shards = batch_shards(mesh)
    unit = shards * accumulation
    if global_batch > 0 and global_batch % unit == 0:
        return
    below = global_batch // unit * unit
    nearest = [str(size) for size in (below, below + unit) if size > 0]
    raise UserError(
        f"batch size {global_batch} is not a multiple of {unit} = {accumulation} microbatch(es) x {shards} batch "
        f"shard(s) (mesh data {mesh.shape['data']} x fsdp {mesh.shape['fsdp']}); "
        f"the nearest that fit: {', '.join(nearest)}"
    )


def split_microbatches(batch: Any, *, accumulation: int) -> Any:
    """Cuts every `[B, ...]` array of a tree into `[A, B/A, ...]`: microbatch `a` holds rows `a, a + A, a + 2A, ...`.

    Strided and not contiguous, because a device holds contiguous rows: this way each one cuts its own rows and none
    moves between devices. Which rows form a microbatch depends on `accumulation` alone, never on the mesh.
    """

    def split(x: Any) -> Any:
        rows, *rest = x.shape
        return x.reshape(rows // accumulation, accumulation, *rest).swapaxes(0, 1)

    return jax.tree.map(split, batch)
