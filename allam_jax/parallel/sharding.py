"""Logical axis names -> mesh axes: the one table that says how arrays are laid out on the devices.

The model names the axes of its parameters and activations ("embed", "heads", "batch", ...) and does not know the mesh.
The table below gives the mesh axes for each name. To change the parallelism, change the table or the mesh's sizes,
never the model.
"""

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from allam_jax.errors import UserError

MeshAxes = str | tuple[str, ...] | None
LogicalAxes = tuple[str | None, ...]


@dataclasses.dataclass(frozen=True)
class ShardingRules:
    """One field for each logical axis; its value is the mesh axis (or axes, outer first) it is cut over."""

    # Parameters. `embed` over fsdp is ZeRO-3: each device keeps a slice and gathers a layer when it needs it.
    vocab: MeshAxes = "tensor"
    embed: MeshAxes = "fsdp"
    heads: MeshAxes = "tensor"
    kv_heads: MeshAxes = "tensor"
    head_dim: MeshAxes = None
    mlp: MeshAxes = "tensor"
    layers: MeshAxes = None
    norm: MeshAxes = None

    # Activations.
    batch: MeshAxes = ("data", "fsdp")
    replica_batch: MeshAxes = "data"  # a batch gathered over fsdp
    sequence: MeshAxes = None
    residual: MeshAxes = "tensor"  # positions of the residual stream, between matmuls
    act_embed: MeshAxes = None
    act_heads: MeshAxes = "tensor"
    act_kv_heads: MeshAxes = "tensor"
    act_mlp: MeshAxes = "tensor"
    act_vocab: MeshAxes = "tensor"

    def mesh_axes(self, logical: str | None) -> tuple[str, ...]:
        """The mesh axes of one logical axis, outer first; ValueError for a name that is not in the table."""
        if logical is None:
            return ()
        try:
            axes = getattr(self, logical)
        except AttributeError:
            known = ", ".join(field.name for field in dataclasses.fields(self))
            raise ValueError(f"unknown logical axis {logical!r}; the table has {known}") from None
        return (axes,) if isinstance(axes, str) else tuple(axes or ())


DEFAULT_RULES = ShardingRules()


def pieces(logical: str | None, sizes: Mapping[str, int]) -> int:
    """Into how many pieces a mesh with these axis sizes (`mesh.shape`) cuts a logical axis."""
    return math.prod(sizes[axis] for axis in DEFAULT_RULES.mesh_axes(logical))


# Grouped-query attention often has fewer key/value heads than `tensor` devices. Each device then keeps all of them:
# they are small, and otherwise such a mesh could not run the model at all.
REPLICATED_IF_UNEVEN = frozenset({"kv_heads", "act_kv_heads"})

_REMEDIES = {
    "vocab": "raise model.vocab_multiple to a multiple of it",
    "embed": "choose mesh.fsdp so that it divides the model width",
    "heads": "choose mesh.tensor so that it divides the number of heads",
    "mlp": "choose mesh.tensor so that it divides the feed-forward width",
}


def logical_to_spec(
    axes: LogicalAxes,
    *,
    mesh: Mesh | AbstractMesh,
    shape: Sequence[int] | None = None,
    name: str = "array",
    whole_if_uneven: bool = False,
) -> PartitionSpec:
    """Maps the logical axes of one array to a PartitionSpec on `mesh`.

    Args:
        axes: a logical name, or None, for each dimension.
        mesh: its axis sizes decide which dimensions can be cut.
        shape: the array's shape. If it is given, its mesh axes must divide each dimension.
        name: what the array is called in messages.
        whole_if_uneven: leaves a dimension whole if its mesh axes do not divide it.

    Raises:
        ValueError: an unknown logical name, the wrong number of axes, or one mesh axis used for two dimensions.
        UserError: a dimension that the mesh does not divide (key/value heads are left whole instead).
    """
    if shape is not None and len(axes) != len(shape):
        raise ValueError(f"{name}: {len(axes)} logical axes {axes} for shape {tuple(shape)}")
    owner: dict[str, str | None] = {}
    entries: list[MeshAxes] = []
    for dimension, logical in enumerate(axes):
        mesh_axes = DEFAULT_RULES.mesh_axes(logical)
        for mesh_axis in mesh_axes:
            if mesh_axis not in mesh.shape:
                raise ValueError(f"{name}: rule {logical!r} -> {mesh_axis!r}, but the mesh has {tuple(mesh.shape)}")
            if mesh_axis in owner:
                raise ValueError(
                    f"{name} {axes}: {owner[mesh_axis]!r} and {logical!r} both map to mesh axis {mesh_axis!r}, "
                    "which can cut one dimension of an array only"
                )
            owner[mesh_axis] = logical
        cut_into = pieces(logical, mesh.shape)
        if shape is not None and shape[dimension] % cut_into:
            if not whole_if_uneven and logical not in REPLICATED_IF_UNEVEN:
                remedy = _REMEDIES.get(str(logical), "choose another mesh")
                raise UserError(
                    f"parameter {name}: dimension {dimension} ({logical}) of size {shape[dimension]} is not divisible "
                    f"by {cut_into} (mesh {' x '.join(mesh_axes)}); {remedy}"
                )
            mesh_axes = ()
        entries.append(mesh_axes[0] if len(mesh_axes) == 1 else (mesh_axes or None))
    return PartitionSpec(*entries)


def constrain(x: jax.Array, *layouts: LogicalAxes) -> jax.Array:
    """Tells the compiler how activation `x` is laid out, by one layout after the other; its values stay the same.

    The mesh is that of the surrounding `jax.set_mesh(mesh)`. Without one, or on one device, nothing happens. Dimensions
    that the mesh does not divide (a batch of one in decoding) are left whole.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return x
    for axes in layouts:
        x = jax.lax.with_sharding_constraint(x, logical_to_spec(axes, mesh=mesh, shape=x.shape, whole_if_uneven=True))
    return x


def parameter_shardings(axes: Any, *, abstract_params: Any, mesh: Mesh | AbstractMesh) -> Any:
    """The tree of NamedShardings for a tree of parameters (arrays or `jax.ShapeDtypeStruct`s).

    `axes` is a tree like theirs with a tuple of logical axes at each leaf. Errors as in `logical_to_spec`; they name
    the parameter by its path ("layers/attention/query").
    """

    def one(path: tuple, logical: LogicalAxes, param: Any) -> NamedSharding:
        return NamedSharding(mesh, logical_to_spec(logical, mesh=mesh, shape=param.shape, name=path_name(path)))

    return jax.tree_util.tree_map_with_path(one, axes, abstract_params, is_leaf=lambda leaf: isinstance(leaf, tuple))


def optimizer_shardings(abstract_state: Any, *, abstract_params: Any, shardings: Any) -> Any:
    """The shardings of an optimizer's state, from those of the parameters.

    A leaf of `abstract_state`, which is `jax.eval_shape(optimizer.init, abstract_params)`, lies as a parameter does if
    its path ends like the parameter's (`.../mu/layers/attention/query`) and it has the parameter's shape. All others
    (counters, factored moments) are small and replicated.
    """
    flat_params = jax.tree_util.tree_leaves_with_path(abstract_params)
    flat_shardings = jax.tree.leaves(shardings)
    known = {
        path_name(path): (param.shape, sharding)
        for (path, param), sharding in zip(flat_params, flat_shardings, strict=True)
    }
    replicated = NamedSharding(flat_shardings[0].mesh, PartitionSpec())

    def one(path: tuple, leaf: Any) -> NamedSharding:
        keys = path_name(path).split("/")
        for start in range(len(keys)):
            shape, sharding = known.get("/".join(keys[start:]), (None, replicated))
            if shape == leaf.shape:
                return sharding
        return replicated

    return jax.tree_util.tree_map_with_path(one, abstract_state)


def fitting(sharding: NamedSharding, array: Any) -> NamedSharding:
    """The sharding for an array of fewer dimensions' entries: those that its mesh axes do not divide are left whole."""
    sizes = sharding.mesh.shape
    entries = []
    for size, axes in itertools.zip_longest(array.shape, sharding.spec[: array.ndim]):
        names = (axes,) if isinstance(axes, str) else axes or ()
        entries.append(None if size % math.prod(sizes[name] for name in names) else axes)
    return NamedSharding(sharding.mesh, PartitionSpec(*entries))


def bytes_per_device(tree: Any) -> dict[jax.Device, int]:
    """How many bytes the arrays of `tree` occupy on each of this process's devices."""
    total: dict[jax.Device, int] = {}
    for array in jax.tree.leaves(tree):
        for shard in array.addressable_shards:
            total[shard.device] = total.get(shard.device, 0) + shard.data.nbytes
    return total


def path_name(path: tuple[Any, ...]) -> str:
    """The place of a leaf in a tree, such as "layers/attention/query"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")
