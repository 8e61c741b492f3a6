"""Parameters that are computed when they are read, written to both formats: what any reader then finds, bit for bit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_models import SMALL, init_jit

from allam_jax.errors import UserError
from allam_jax.parallel.mesh import make_mesh
from allam_jax.weights import orbax_arrays
from allam_jax.weights.directory import load_weights, save_weights, shardings_on
from allam_jax.weights.huggingface import export_huggingface
from allam_jax.weights.orbax_arrays import chunk_shape, open_array, read_part, save_args
from allam_jax.weights.streamed import StreamedArray

NAMES = ("embedding.table", "layers.mlp.up", "layers.attention.query")


@pytest.fixture(scope="module")
def params():
    return jax.tree.map(np.asarray, init_jit(jax.random.key(0), config=SMALL))


@pytest.fixture
def small_chunks(monkeypatch):
    """Arrays of a few kilobytes are then cut as large ones are."""
    monkeypatch.setattr(orbax_arrays, "CHUNK_BYTES", 2000)


def streamed(params, *, dtype=None, read=None):
    """Every array of `params` as a StreamedArray; `read` is told of each reading."""

    def leaf(path, array):
        name = jax.tree_util.keystr(path, simple=True, separator=".")

        def compute(layer, dtype):
            if read is not None:
                read.append((name, layer))
            return (array if layer is None else array[layer]).astype(dtype)

        return StreamedArray(array.shape, np.dtype(dtype or array.dtype), name.startswith("layers"), compute)

    return jax.tree_util.tree_map_with_path(leaf, params)


def assert_bitwise(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
        assert np.asarray(ours).tobytes() == np.asarray(theirs).tobytes()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_weights_directory(tmp_path, params, small_chunks, dtype):
    read = []
    save_weights(tmp_path / "x", params=streamed(params, dtype=jnp.dtype(dtype), read=read), config=SMALL)
    expected = jax.tree.map(lambda p: p.astype(jnp.dtype(dtype)), params)
    assert_bitwise(load_weights(tmp_path / "x").params, expected)
    assert len(read) == len(set(read)) == 3 + 9 * SMALL.num_layers
    mesh = make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    sharded = load_weights(tmp_path / "x", mesh=mesh).params
    assert_bitwise(sharded, expected)
    wanted = shardings_on(SMALL, mesh=mesh)
    assert all(jax.tree.leaves(jax.tree.map(lambda p, s: p.sharding.is_equivalent_to(s, p.ndim), sharded, wanted)))


def test_a_hugging_face_directory(tmp_path, params):
    export_huggingface(tmp_path / "streamed", params=streamed(params), config=SMALL, max_shard_bytes=40_000)
    export_huggingface(tmp_path / "whole", params=params, config=SMALL, max_shard_bytes=40_000)
    files = sorted(path.name for path in (tmp_path / "whole").iterdir())
    assert len(files) > 4
    assert sorted(path.name for path in (tmp_path / "streamed").iterdir()) == files
    for name in files:
        assert (tmp_path / "streamed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_another_dtype(params):
    table = streamed(params)["embedding"]["table"].astype("bfloat16")
    assert table.nbytes == params["embedding"]["table"].nbytes // 2
    np.testing.assert_array_equal(np.asarray(table), params["embedding"]["table"].astype(jnp.bfloat16))
    with pytest.raises(IndexError, match="not a stack"):
        table[0]


@pytest.mark.parametrize("mesh", [None, (2, 2, 2)])
def test_parts_of_what_save_weights_wrote(tmp_path, params, small_chunks, mesh):
    placed = params
    if mesh is not None:
        data, fsdp, tensor = mesh
        placed = jax.device_put(
            params, shardings_on(SMALL, mesh=make_mesh({"data": data, "fsdp": fsdp, "tensor": tensor}))
        )
    save_weights(tmp_path / "x", params=jax.tree.map(jnp.asarray, placed), config=SMALL)
    assert_bitwise(load_weights(tmp_path / "x").params, params)
    folder = tmp_path / "x"
    for name in NAMES:
        array = open_array(folder, name)
        expected = params
        for key in name.split("."):
            expected = expected[key]
        assert np.prod(chunk_shape(array)) * 4 <= 2000
        assert len(array.shape) == 2 or chunk_shape(array)[0] == 1
        index = (1, slice(None), slice(3, 7)) if expected.ndim > 2 else (slice(5, 90),)
        found = read_part(array, index, folder=folder, name=name)
        assert found.tobytes() == np.ascontiguousarray(expected[index]).tobytes()


def test_small_arrays_stay_whole(params):
    assert {args.chunk_byte_size for args in jax.tree.leaves(save_args(params))} == {None}


def test_damaged_parts(tmp_path, params):
    save_weights(tmp_path / "x", params=jax.tree.map(jnp.asarray, params), config=SMALL)
    folder = tmp_path / "x"
    with pytest.raises(UserError, match=r"x: array layers\.nothing cannot be read \("):
        open_array(folder, "layers.nothing")
    array = open_array(folder, "embedding.table")
    for file in folder.glob("ocdbt.process_0/d/*"):
        file.write_bytes(b"\x00" * file.stat().st_size)
    with pytest.raises(UserError, match=r"x: array embedding\.table cannot be read \(") as error:
        read_part(array, (slice(0, 3),), folder=folder, name="embedding.table")
    assert "\n" not in str(error.value)
