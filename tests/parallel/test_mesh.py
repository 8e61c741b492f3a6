import jax
import numpy as np
import pytest

from allam_jax.errors import UserError
from allam_jax.parallel.mesh import batch_sharding, check_batch, make_mesh, split_microbatches
from allam_jax.parallel.sharding import pieces


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ((8, 1, 1), (8, 1, 1)),
        ((-1, 1, 1), (8, 1, 1)),
        ((1, -1, 2), (1, 4, 2)),
        ((2, 2, -1), (2, 2, 2)),
    ],
)
def test_mesh_has_the_sizes_asked_for(sizes, expected):
    data, fsdp, tensor = sizes
    mesh = make_mesh({"data": data, "fsdp": fsdp, "tensor": tensor})
    assert dict(mesh.shape) == dict(zip(("data", "fsdp", "tensor"), expected, strict=True))
    assert {device.id for device in mesh.devices.flat} == {device.id for device in jax.devices()}


def test_mesh_on_some_of_the_devices():
    mesh = make_mesh({"data": 1, "fsdp": 1, "tensor": 4}, devices=jax.devices()[:4])
    assert mesh.size == 4


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ((3, 1, 1), ["mesh.data=3", "multiply to 3", "8 device"]),
        ((-1, 3, 1), ["multiply to 3", "does not divide the 8"]),
        ((-1, -1, 1), ["at most one", "data or fsdp"]),
        ((0, 1, 1), ["mesh.data=0", "positive"]),
        ((-2, 1, 1), ["mesh.data=-2", "positive"]),
    ],
)
def test_wrong_sizes_are_named(sizes, words):
    data, fsdp, tensor = sizes
    with pytest.raises(UserError) as error:
        make_mesh({"data": data, "fsdp": fsdp, "tensor": tensor})
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)


def test_an_unknown_axis_is_named():
    with pytest.raises(UserError, match="mesh.fdsp=8: a mesh has no axis 'fdsp'; expected data, fsdp, tensor$"):
        make_mesh({"fdsp": 8})


def test_axes_lie_in_the_order_of_the_table():
    one, two = make_mesh({"data": 2, "tensor": 4}), make_mesh({"tensor": 4, "data": 2})
    assert one == two
    assert [device.id for device in one.devices[1, 0]] == [4, 5, 6, 7]


class FakeDevice:
    """Only what the mesh looks at: many hosts cannot be had in one process."""

    platform = "gpu"

    def __init__(self, *, process_index, id):
        self.process_index = process_index
        self.id = id


def test_inner_axes_stay_inside_a_host():
    devices = [FakeDevice(process_index=process, id=process * 8 + i) for i in range(8) for process in range(4)]
    grid = make_mesh({"data": 4, "fsdp": 4, "tensor": 2}, devices=devices).devices
    for replica in range(4):
        assert {device.process_index for device in grid[replica].flat} == {replica}
    grid = make_mesh({"data": 1, "fsdp": 16, "tensor": 2}, devices=devices).devices
    for shard in range(16):
        assert len({device.process_index for device in grid[0, shard]}) == 1


@pytest.mark.parametrize("sizes", [(8, 1, 1), (2, 4, 1), (2, 2, 2), (1, 1, 8)])
def test_rows_lie_contiguous_over_data_and_fsdp(sizes):
    data, fsdp, tensor = sizes
    mesh = make_mesh({"data": data, "fsdp": fsdp, "tensor": tensor})
    x_BT = jax.device_put(np.arange(16)[:, None] * np.ones(3), batch_sharding(mesh))
    rows = 16 // pieces("batch", mesh.shape)
    for (d, f, _), device in np.ndenumerate(mesh.devices):
        (shard,) = [shard for shard in x_BT.addressable_shards if shard.device == device]
        first = (d * fsdp + f) * rows
        np.testing.assert_array_equal(shard.data[:, 0], np.arange(first, first + rows))
        assert shard.data.shape == (rows, 3)


def test_batch_size_error_names_the_nearest_sizes():
    mesh = make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    check_batch(24, accumulation=3, mesh=mesh)
    with pytest.raises(UserError, match=r"data.batch_size = 20 is not a multiple of 12.*: 12, 24$"):
        check_batch(20, accumulation=3, mesh=mesh)
    with pytest.raises(UserError, match=r"the nearest that fit: 4$"):
        check_batch(1, accumulation=1, mesh=mesh)


def test_the_sizes_offered_are_the_ones_accepted():
    mesh = make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    for accumulation in (1, 2, 5):
        for size in range(1, 50):
            fits = size % accumulation == 0 and size // accumulation % 4 == 0
            try:
                check_batch(size, accumulation=accumulation, mesh=mesh)
            except UserError as error:
                assert not fits
                offered = [int(number) for number in str(error).rsplit(":", 1)[1].split(",")]
                assert all(number % (4 * accumulation) == 0 for number in offered)
                assert offered[-1] - size < 4 * accumulation
            else:
                assert fits


def test_microbatches_are_a_partition_and_cut_without_moving_rows():
    mesh = make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    rows = np.arange(24)[:, None] * np.ones((1, 5))
    batch = {"tokens": jax.device_put(rows, batch_sharding(mesh))}
    cut = jax.jit(lambda batch: split_microbatches(batch, accumulation=3))
    x_ABT = cut(batch)["tokens"]
    assert x_ABT.shape == (3, 8, 5)
    for index, x_BT in enumerate(np.asarray(x_ABT)):
        np.testing.assert_array_equal(x_BT[:, 0], np.arange(index, 24, 3))
    hlo = cut.lower(batch).compile().as_text()
    for collective in ("all-gather", "all-to-all", "collective-permute", "all-reduce"):
        assert collective not in hlo
