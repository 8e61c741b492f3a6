"""Attention on a mesh: every device runs a backend on its own rows and heads, and nothing is exchanged.

Left to itself the compiler replicates a kernel that it cannot look into: it gathers the whole batch in front of it.
Inside `shard_map` there is nothing for it to decide.
"""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, AxisType, PartitionSpec
from jaxtyping import Array

from kernels.attention.contract import AttentionOutput, Places, Request


@dataclasses.dataclass(frozen=True)
class Partition:
    """The mesh axes over which the rows of the batch and the query heads are cut, outer axis first."""

    batch: tuple[str, ...] = ()
    heads: tuple[str, ...] = ()


WHOLE = Partition()  # nothing is cut


def over_mesh(
    serve: Callable[..., AttentionOutput],
    q_BTNH: Array,
    k_BTKH: Array,
    v_BTKH: Array,
    request: Request,
    *,
    partition: Partition,
) -> AttentionOutput:
    """Runs `serve(q, k, v, request)` on the shards of the surrounding mesh (`jax.set_mesh`).

    Rows or heads that the axes do not divide stay whole on every device. Key/value heads that they do not divide come
    whole too, and each device takes those that its query heads read. Axes that are manual already (inside another
    `shard_map`) are left alone; without a mesh, `serve` is called as it is.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return serve(q_BTNH, k_BTKH, v_BTKH, request)
    N, K = q_BTNH.shape[2], k_BTKH.shape[2]
    batch = dividing(partition.batch, q_BTNH.shape[0], mesh)
    heads = dividing(partition.heads, N, mesh)
    kv_heads = dividing(heads, K, mesh)

    def local(q_BTNH, k_BTKH, v_BTKH, request):
        head_shard = jax.lax.axis_index(heads) if heads else 0
        if kv_heads != heads:
            k_BTKH, v_BTKH = (_heads_read(a, head_shard, q_BTNH.shape[2], group=N // K) for a in (k_BTKH, v_BTKH))
        if request.dropout is not None:
            row_shard = jax.lax.axis_index(batch) if batch else 0
            rows, _, num_heads, _ = q_BTNH.shape
            dropout = request.dropout.of_shard(rows=row_shard * rows, heads=head_shard * num_heads)
            request = dataclasses.replace(request, dropout=dropout)
        return serve(q_BTNH, k_BTKH, v_BTKH, request)

    queries = PartitionSpec(batch or None, None, heads or None)
    keys = PartitionSpec(batch or None, None, kv_heads or None)
    rows = PartitionSpec(batch or None)
    of_request = dataclasses.replace(request, segment_ids_BT=rows, dropout=PartitionSpec() if request.dropout else None)  # type: ignore[arg-type]
    if request.keys is not None:
        of_request = dataclasses.replace(of_request, positions_BT=rows, keys=Places(rows, rows))  # type: ignore[arg-type]
    return jax.shard_map(
        local,
        in_specs=(queries, keys, keys, of_request),
        out_specs=AttentionOutput(queries, PartitionSpec(batch or None, heads or None)),  # type: ignore[arg-type]
        check_vma=False,  # Pallas calls do not say which axes their results vary over
    )(q_BTNH, k_BTKH, v_BTKH, request)


def dividing(axes: tuple[str, ...], size: int, mesh: AbstractMesh) -> tuple[str, ...]:
    """The axes that are there to be cut over, or none if they do not divide `size`."""
    types = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
    axes = tuple(axis for axis in axes if types[axis] != AxisType.Manual)
    return axes if size % math.prod(mesh.shape[axis] for axis in axes) == 0 else ()


def _heads_read(a_BTKH: Array, head_shard: Array, num_local_heads: int, *, group: int) -> Array:
    """The key/value heads that the query heads of this shard read."""
    first = head_shard * num_local_heads
    if group % num_local_heads == 0:  # all read the same one
        return jax.lax.dynamic_slice_in_dim(a_BTKH, first // group, 1, axis=2)
    # The groups end inside of shards: one key/value head for each query head.
    return jnp.take(a_BTKH, (first + jnp.arange(num_local_heads)) // group, axis=2)
