"""Compiled programs whose collectives, loops and products are known by hand, read back from XLA's text."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from allam_jax.parallel.mesh import MESH_AXES, make_mesh
from allam_jax.planning.collectives import Collective, collectives_of, device_groups
from allam_jax.planning.hlo import bits_of, parse_program
from allam_jax.planning.step_work import work_of

MESH = {"data": 2, "fsdp": 2, "tensor": 2}
WHOLE = P()


def compiled(function, *shapes, specs, out=WHOLE):
    """`function` on shards of a 2 x 2 x 2 mesh, compiled for the CPU: its program and the mesh."""
    mesh = make_mesh(MESH, devices=jax.devices()[:8])
    arguments = [
        jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))
        for (shape, dtype), spec in zip(shapes, specs, strict=True)
    ]
    mapped = jax.shard_map(function, mesh=mesh, in_specs=tuple(specs), out_specs=out, check_vma=False)
    return parse_program(jax.jit(mapped).lower(*arguments).compile().as_text()), mesh


def only(module, mesh, *, gpus_per_node=8) -> Collective:
    (found,) = collectives_of(module, mesh=mesh, gpus_per_node=gpus_per_node)
    return found


@pytest.mark.parametrize(
    ("axes", "gpus_per_node", "ranks_per_node"),
    [
        (("tensor",), 8, 2),
        (("tensor",), 2, 2),
        (("tensor",), 1, 1),
        (("fsdp",), 2, 1),  # neighbours along fsdp are 2 apart
        (("fsdp",), 4, 2),
        (("data",), 4, 1),
        (("data", "fsdp"), 4, 2),
        (("data", "fsdp", "tensor"), 4, 4),
    ],
)
def test_all_reduce_over_axes(axes, gpus_per_node, ranks_per_node):
    module, mesh = compiled(
        lambda x: jax.lax.psum(x, axes), ((16, 12), jnp.float32), specs=[P("data", "fsdp")], out=P("data", "fsdp")
    )
    found = only(module, mesh, gpus_per_node=gpus_per_node)
    assert found.kind == "all-reduce"
    assert found.axes == axes
    assert found.dtype == "f32"
    assert found.payload_bytes == 8 * 6 * 4  # one shard of 16 x 12 over data and fsdp
    assert found.group_size == 2 ** len(axes)
    assert found.ranks_per_node == ranks_per_node
    assert found.crosses_nodes == (ranks_per_node < 2 ** len(axes))
    assert found.count == 1
    n = 2 ** len(axes)
    assert found.wire_bytes == pytest.approx(2 * (n - 1) / n * 192)


def test_gather_and_scatter_count_the_whole_array():
    gather = functools.partial(jax.lax.all_gather, axis_name="fsdp", axis=0, tiled=True)
    module, mesh = compiled(gather, ((16, 12), jnp.int16), specs=[P("fsdp")])
    found = only(module, mesh)
    assert (found.kind, found.axes, found.dtype) == ("all-gather", ("fsdp",), "s16")
    assert found.payload_bytes == 16 * 12 * 2
    assert found.wire_bytes == 16 * 12 * 2 / 2

    scatter = functools.partial(jax.lax.psum_scatter, axis_name="tensor", scatter_dimension=1, tiled=True)
    module, mesh = compiled(scatter, ((16, 12), jnp.float32), specs=[P()], out=P(None, "tensor"))
    found = only(module, mesh)
    assert (found.kind, found.axes, found.payload_bytes) == ("reduce-scatter", ("tensor",), 16 * 12 * 4)


def test_all_to_all_and_permute():
    swap = functools.partial(jax.lax.all_to_all, axis_name="data", split_axis=1, concat_axis=0, tiled=True)
    module, mesh = compiled(swap, ((16, 12), jnp.float32), specs=[P("data")], out=P(None, "data"))
    found = only(module, mesh)
    assert (found.kind, found.axes, found.payload_bytes) == ("all-to-all", ("data",), 8 * 12 * 4)

    shift = functools.partial(jax.lax.ppermute, axis_name="fsdp", perm=[(0, 1), (1, 0)])
    module, mesh = compiled(shift, ((16, 12), jnp.float32), specs=[P("fsdp")], out=P("fsdp"))
    found = only(module, mesh, gpus_per_node=2)
    assert (found.kind, found.axes, found.wire_bytes) == ("collective-permute", ("fsdp",), 8 * 12 * 4)
    assert found.crosses_nodes


def test_loops_multiply():
    """Three times five rounds of one reduction, and one outside."""

    def program(x):
        def inner(c, _):
            return jnp.sin(jax.lax.psum(c, "tensor")), None

        def outer(c, _):
            return jax.lax.scan(inner, c, None, length=5)[0] * 2, None

        x = jax.lax.scan(outer, x, None, length=3)[0]
        return jax.lax.psum(x, "data")

    module, mesh = compiled(program, ((4, 4), jnp.float32), specs=[P()], out=P())
    counts = {found.axes: found.count for found in collectives_of(module, mesh=mesh, gpus_per_node=8)}
    assert counts == {("tensor",): 15, ("data",): 1}


def test_flops_of_products_in_loops():
    """A product in a loop of 7, batched over 3, and one outside."""

    def program(x_BMK, w_KK, v_KN):
        def body(x_BMK, _):
            return jnp.tanh(jnp.einsum("bmk,kl->bml", x_BMK, w_KK)), None

        x_BMK = jax.lax.scan(body, x_BMK, None, length=7)[0]
        return jnp.einsum("bmk,kn->bmn", x_BMK, v_KN).sum()

    shapes = [((3, 64, 32), jnp.float32), ((32, 32), jnp.float32), ((32, 48), jnp.float32)]
    module, _ = compiled(program, *shapes, specs=[P()] * 3)
    flops = sum(piece.flops * piece.count for piece in work_of(module))
    assert flops == 2 * 3 * 64 * 32 * 32 * 7 + 2 * 3 * 64 * 32 * 48


def test_a_slice_of_a_stack_is_not_the_stack():
    """Scanning over 50 stacked matrices reads each once: not 50 times the whole stack."""

    def program(x, stack):
        return jax.lax.scan(lambda c, w: (jnp.tanh(c * w), None), x, stack)[0]

    module, _ = compiled(program, ((256, 256), jnp.float32), ((50, 256, 256), jnp.float32), specs=[P(), P()])
    matrix = 256 * 256 * 4
    traffic = sum(piece.bytes * piece.count for piece in work_of(module))
    assert 50 * 3 * matrix <= traffic <= 50 * 6 * matrix  # state read and written, slice read (and perhaps copied)


def test_stacked_results_count_their_slices():
    """Writing 50 rows into a stack moves the rows, not 50 stacks."""

    def program(x):
        return jax.lax.scan(lambda c, _: (jnp.sin(c), c * 2), x, None, length=50)[1]

    module, _ = compiled(program, ((256, 256), jnp.float32), specs=[P()])
    matrix = 256 * 256 * 4
    traffic = sum(piece.bytes * piece.count for piece in work_of(module))
    assert 50 * 2 * matrix <= traffic <= 50 * 8 * matrix


@pytest.mark.parametrize(
    ("text", "groups"),
    [
        ("replica_groups={{0,1},{2,3}}, x=1", [[0, 1], [2, 3]]),
        ("replica_groups={{0,2,1,3}}", [[0, 2, 1, 3]]),
        ("replica_groups=[2,4]<=[8], x", [[0, 1, 2, 3], [4, 5, 6, 7]]),
        ("replica_groups=[4,2]<=[2,4]T(1,0)", [[0, 4], [1, 5], [2, 6], [3, 7]]),
        ("replica_groups=mesh['a'=2,'b'=4] {'b'}, x", [[0, 1, 2, 3], [4, 5, 6, 7]]),
        ("replica_groups=mesh['a'=2,'b'=4] {'a'}", [[0, 4], [1, 5], [2, 6], [3, 7]]),
        ("replica_groups=mesh['a'=2,'b'=2,'c'=2] {'a','c'}", [[0, 1, 4, 5], [2, 3, 6, 7]]),
        ("replica_groups=mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'b'}", [[0, 4], [1, 5], [2, 6], [3, 7]]),
        ("replica_groups=mesh['a'=8] {'a':(1)2}", [[0, 4], [1, 5], [2, 6], [3, 7]]),
        ("replica_groups=mesh['a'=8] {'a':(4)2}", [[0, 1], [2, 3], [4, 5], [6, 7]]),
        ("replica_groups={}", [[0, 1, 2, 3, 4, 5, 6, 7]]),
    ],
)
def test_spellings_of_groups(text, groups):
    assert device_groups(text, kind="all-reduce", device_count=8).tolist() == groups


def test_an_unknown_form_is_refused():
    with pytest.raises(ValueError, match="unknown form"):
        device_groups("replica_groups=<0,1>", kind="all-reduce", device_count=2)


def test_types():
    assert [bits_of(name) for name in ("bf16", "f32", "pred", "s4", "f8e4m3fn", "u64", "c64")] == [
        *(16, 32, 8, 4, 8, 64, 64)
    ]
    with pytest.raises(ValueError, match="unknown XLA element type"):
        bits_of("!")


def test_not_a_program():
    with pytest.raises(ValueError, match="no ENTRY"):
        parse_program("hello")


def test_loops_of_unknown_length_are_refused():
    module, mesh = compiled(
        lambda x: jax.lax.while_loop(lambda c: c[0, 0] < 3, lambda c: jax.lax.psum(c, "data"), x),
        ((4, 4), jnp.float32),
        specs=[P()],
    )
    with pytest.raises(ValueError, match="no known trip count"):
        collectives_of(module, mesh=mesh, gpus_per_node=8)


def test_the_mesh_orders_axes_as_the_planner_expects():
    assert tuple(MESH) == MESH_AXES
    ids = np.vectorize(lambda device: device.id)(make_mesh(MESH, devices=jax.devices()[:8]).devices)
    assert ids.ravel().tolist() == list(range(8))
