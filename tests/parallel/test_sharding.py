import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

from allam_jax.errors import UserError
from allam_jax.parallel.mesh import make_mesh
from allam_jax.parallel.sharding import (
    DEFAULT_RULES,
    ShardingRules,
    bytes_per_device,
    constrain,
    logical_to_spec,
    optimizer_shardings,
    parameter_shardings,
)

MESHES = [(8, 1, 1), (1, 8, 1), (1, 1, 8), (2, 2, 2), (1, 4, 2)]


def mesh_of(sizes):
    return make_mesh({"data": sizes[0], "fsdp": sizes[1], "tensor": sizes[2]})


def test_every_pair_of_axes_maps_as_the_table_says_or_collides():
    """Brute force over the whole table, against a second writing of the rule: no mesh axis twice."""
    mesh = mesh_of((2, 2, 2))
    names = [field.name for field in dataclasses.fields(ShardingRules)]
    collisions = 0
    for first, second in itertools.product([*names, None], repeat=2):
        values = [None if name is None else getattr(DEFAULT_RULES, name) for name in (first, second)]
        used = [axis for value in values for axis in ([value] if isinstance(value, str) else value or [])]
        if len(used) != len(set(used)):
            collisions += 1
            with pytest.raises(ValueError, match=r"w .*both map to mesh axis") as error:
                logical_to_spec((first, second), mesh=mesh, name="w")
            assert repr(second) in str(error.value)
        else:
            assert logical_to_spec((first, second), mesh=mesh, name="w") == PartitionSpec(*values)
    assert collisions > 20


def test_a_collision_is_found_on_one_device_too():
    mesh = make_mesh({"data": 1, "fsdp": 1, "tensor": 1}, devices=jax.devices()[:1])
    with pytest.raises(ValueError, match="both map to mesh axis 'tensor'"):
        logical_to_spec(("heads", "mlp"), mesh=mesh)


def test_unknown_names():
    mesh = mesh_of((2, 2, 2))
    with pytest.raises(ValueError, match="unknown logical axis 'hedas'"):
        logical_to_spec(("hedas",), mesh=mesh)
    with pytest.raises(ValueError, match="'tensor', but the mesh has"):
        logical_to_spec(("mlp",), mesh=jax.make_mesh((8,), ("data",)))
    with pytest.raises(ValueError, match="1 logical axes"):
        logical_to_spec(("mlp",), mesh=mesh, shape=(2, 3))


@pytest.mark.parametrize(
    ("axis", "size", "remedy"),
    [
        ("vocab", 1002, "vocab_multiple"),
        ("heads", 6, "mesh.tensor"),
        ("mlp", 22, "mesh.tensor"),
        ("embed", 9, "mesh.fsdp"),
    ],
)
def test_a_dimension_that_does_not_divide_is_named(axis, size, remedy):
    mesh = make_mesh({"data": 1, "fsdp": 2, "tensor": 4})
    axes, shape = {"layers": {"w": ("layers", axis)}}, {"layers": {"w": jax.ShapeDtypeStruct((3, size), jnp.float32)}}
    with pytest.raises(UserError) as error:
        parameter_shardings(axes, abstract_params=shape, mesh=mesh)
    message = str(error.value)
    assert "layers/w" in message
    assert f"dimension 1 ({axis}) of size {size}" in message
    assert remedy in message
    assert "\n" not in message


def test_few_key_value_heads_are_kept_whole():
    mesh = make_mesh({"data": 1, "fsdp": 2, "tensor": 4})
    axes = ("embed", "kv_heads", "head_dim")
    assert logical_to_spec(axes, mesh=mesh, shape=(8, 2, 4)) == PartitionSpec("fsdp", None, None)
    assert logical_to_spec(axes, mesh=mesh, shape=(8, 8, 4)) == PartitionSpec("fsdp", "tensor", None)


AXES = {
    "embedding": {"table": ("vocab", "embed")},
    "layers": {
        "query": ("layers", "embed", "heads", "head_dim"),
        "key": ("layers", "embed", "kv_heads", "head_dim"),
        "up": ("layers", "embed", "mlp"),
        "down": ("layers", "mlp", "embed"),
        "scale": ("layers", "norm"),
    },
}
SHAPES = {
    "embedding": {"table": (64, 16)},
    "layers": {
        "query": (3, 16, 8, 4),
        "key": (3, 16, 8, 4),
        "up": (3, 16, 24),
        "down": (3, 24, 16),
        "scale": (3, 16),
    },
}


def make_params(dtype=jnp.float32):
    return jax.tree.map(lambda shape: jnp.ones(shape, dtype), SHAPES, is_leaf=lambda leaf: isinstance(leaf, tuple))


def expected_bytes(sizes, *, itemsize=4):
    """Counted by hand: what fsdp and tensor leave of each parameter."""
    _, fsdp, tensor = sizes
    total = 3 * 16  # norm scales are whole everywhere
    total += 64 // tensor * 16 // fsdp
    total += 2 * (3 * 16 // fsdp * 8 // tensor * 4)
    total += 2 * (3 * 16 // fsdp * 24 // tensor)
    return total * itemsize


@pytest.mark.parametrize("sizes", MESHES)
def test_bytes_on_each_device_are_the_exact_share(sizes):
    params = make_params()
    shardings = parameter_shardings(AXES, abstract_params=params, mesh=mesh_of(sizes))
    placed = jax.device_put(params, shardings)
    assert bytes_per_device(placed) == dict.fromkeys(jax.devices(), expected_bytes(sizes))
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), placed)
    assert bytes_per_device(half) == dict.fromkeys(jax.devices(), expected_bytes(sizes, itemsize=2))


@pytest.mark.parametrize("sizes", MESHES)
def test_optimizer_state_lies_as_the_parameters(sizes):
    params = make_params()
    shardings = parameter_shardings(AXES, abstract_params=params, mesh=mesh_of(sizes))
    decay_mask = jax.tree.map(lambda axes: "norm" not in axes, AXES, is_leaf=lambda leaf: isinstance(leaf, tuple))
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3, mask=decay_mask))
    abstract = jax.eval_shape(optimizer.init, params)
    state_shardings = optimizer_shardings(abstract, abstract_params=params, shardings=shardings)
    state = jax.jit(optimizer.init, out_shardings=state_shardings)(jax.device_put(params, shardings))
    counters = sum(leaf.nbytes for leaf in jax.tree.leaves(state) if leaf.ndim == 0)
    assert counters > 0
    assert bytes_per_device(state) == dict.fromkeys(jax.devices(), 2 * expected_bytes(sizes) + counters)
    adam = state[1][0]
    for moments in (adam.mu, adam.nu):
        same = jax.tree.map(lambda moment, sharding: moment.sharding == sharding, moments, shardings)
        assert all(jax.tree.leaves(same))


def test_state_that_does_not_mirror_the_parameters_is_replicated():
    params = {"layers": {"up": jnp.ones((256, 512))}}
    mesh = mesh_of((1, 4, 2))
    shardings = parameter_shardings({"layers": {"up": ("embed", "mlp")}}, abstract_params=params, mesh=mesh)
    abstract = jax.eval_shape(optax.adafactor(1e-3).init, params)
    state = optimizer_shardings(abstract, abstract_params=params, shardings=shardings)
    specs = [
        (leaf.shape, sharding.spec) for leaf, sharding in zip(*map(jax.tree.leaves, (abstract, state)), strict=True)
    ]
    assert ((256,), PartitionSpec()) in specs  # the factored second moment has the parameter's path, not its shape
    for shape, spec in specs:
        assert (spec == PartitionSpec("fsdp", "tensor")) == (shape == (256, 512))


def test_constrain_lays_out_activations():
    x_BTF = jnp.arange(8 * 3 * 6.0).reshape(8, 3, 6)
    layout = jax.jit(lambda x: constrain(2 * x, ("batch", "sequence", "act_mlp")))
    with jax.set_mesh(mesh_of((2, 2, 2))):
        y_BTF = layout(x_BTF)
        assert y_BTF.sharding.spec == PartitionSpec(("data", "fsdp"), None, "tensor")
        one = layout(x_BTF[:1])  # a single row cannot be cut
        assert one.sharding.spec == PartitionSpec(None, None, "tensor")
        with pytest.raises(ValueError, match="logical axes"):
            constrain(x_BTF, ("batch", "sequence"))
    np.testing.assert_array_equal(y_BTF, 2 * x_BTF)
    np.testing.assert_array_equal(one, 2 * x_BTF[:1])


def test_constrain_without_a_mesh_adds_nothing():
    x_BT = jnp.ones((8, 3))
    constrained = jax.make_jaxpr(lambda x: constrain(x, ("batch", "sequence")))
    assert not constrained(x_BT).eqns
    with jax.set_mesh(make_mesh({"data": 1, "fsdp": 1, "tensor": 1}, devices=jax.devices()[:1])):
        assert not constrained(x_BT).eqns
