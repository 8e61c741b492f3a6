"""Checksums of arrays: those of NumPy's bytes, whatever the mesh; and values that are not finite."""

import itertools

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import xxhash
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from small_models import SMALL, init_jit

from allam_jax.errors import UserError
from allam_jax.weights import array_checksums
from allam_jax.weights.array_checksums import all_finite, check_arrays, check_finite
from allam_jax.weights.array_checksums import array_checksums as checksums_of
from allam_jax.weights.directory import load_weights, save_weights
from allam_jax.weights.huggingface import export_huggingface, import_huggingface

VALUES = np.random.default_rng(0).standard_normal((8, 16, 24)).astype(np.float32)
SPECS = [PartitionSpec(), PartitionSpec("a"), PartitionSpec(None, "b"), PartitionSpec("b", None, "a")]


def placed(spec, values=VALUES):
    mesh = Mesh(np.array(jax.devices()).reshape(2, 4), ("a", "b"))
    return {"x": {"y": jax.device_put(values, NamedSharding(mesh, spec))}}


@pytest.mark.parametrize("spec", SPECS)
def test_boxes_cover_the_array_once_and_hash_its_bytes(spec, monkeypatch):
    monkeypatch.setattr(array_checksums, "BOX_BYTES", 1500)
    covered = np.zeros(VALUES.shape, int)
    for *edges, found in checksums_of(placed(spec))["x.y"]:
        part = tuple(itertools.starmap(slice, zip(edges[::2], edges[1::2], strict=True)))
        covered[part] += 1
        assert found == xxhash.xxh3_128_hexdigest(VALUES[part].tobytes())
    assert (covered == 1).all()


@pytest.mark.parametrize("written", SPECS)
@pytest.mark.parametrize("read", SPECS)
def test_any_mesh_checks_what_any_mesh_wrote(tmp_path, written, read, monkeypatch):
    monkeypatch.setattr(array_checksums, "BOX_BYTES", 3000)
    stored = checksums_of(placed(written))
    check_arrays(placed(read), stored, folder=tmp_path, remedy="")
    for place in ((0, 0, 0), (7, 15, 23), (3, 9, 11)):
        changed = VALUES.copy()
        changed.view(np.uint32)[place] ^= 1
        with pytest.raises(UserError, match=r"the values of x\.y are not those that were saved.*; copy it"):
            check_arrays(placed(read, changed), stored, folder=tmp_path, remedy="copy it")
    with pytest.raises(UserError, match=r"x\.y"):  # a box that is missing
        check_arrays(placed(read), {"x.y": stored["x.y"][1:]}, folder=tmp_path, remedy="")


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16, np.float64])
def test_finite_as_numpy_says(dtype):
    largest = ml_dtypes.finfo(dtype).max
    for values, expected in (([0, -1, largest, -largest], True), ([1, np.inf], False), ([np.nan], False), ([], True)):
        array = np.array(values, dtype)
        assert bool(np.isfinite(array.astype(np.float64)).all()) == expected
        assert all_finite(array) == expected
        assert all_finite(-array) == expected
    assert all_finite(np.array([2**31 - 1], np.int32))


def test_not_finite_parameters_are_named_wherever_they_come_in_or_go_out(tmp_path):
    good = init_jit(jax.random.key(0), config=SMALL)
    for bad_value in (np.nan, -np.inf):
        bad = jax.tree.map(lambda leaf: leaf, good)
        bad["layers"]["mlp"]["up"] = bad["layers"]["mlp"]["up"].at[1, 2, 3].set(bad_value)
        with pytest.raises(UserError, match=r"layers\.mlp\.up"):
            check_finite(bad, where="x")
        with pytest.raises(UserError, match=r"layers\.mlp\.up has values that are NaN or infinite"):
            save_weights(tmp_path / "x", params=bad, config=SMALL)
        with pytest.raises(UserError, match=r"model\.layers\.1\.mlp\.up_proj\.weight has values"):
            export_huggingface(tmp_path / "x", params=bad, config=SMALL)
        assert list(tmp_path.iterdir()) == []


def test_what_does_not_fit_float16_is_not_exported(tmp_path):
    params = init_jit(jax.random.key(0), config=SMALL)
    params["final_norm"]["scale"] = params["final_norm"]["scale"].at[0].set(1e5)
    with pytest.raises(UserError, match=r"model\.norm\.weight has values .* was to become float16"):
        export_huggingface(tmp_path / "x", params=params, config=SMALL, dtype="float16")
    export_huggingface(tmp_path / "x", params=params, config=SMALL, dtype="bfloat16")
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.float16), params)
    with pytest.raises(UserError, match=r"final_norm\.scale has values"):
        save_weights(tmp_path / "y", params=half, config=SMALL)


def test_a_foreign_directory_with_nan_is_refused(tmp_path):
    params = init_jit(jax.random.key(0), config=SMALL)
    export_huggingface(tmp_path / "x", params=params, config=SMALL)
    (tmp_path / "x" / "files.json").unlink()
    path = tmp_path / "x" / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-4:] = np.float32(np.nan).tobytes()
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"model\.safetensors: lm_head\.weight has values that are NaN"):
        import_huggingface(tmp_path / "x")


def test_a_flipped_bit_is_found_in_every_format(tmp_path):
    params = init_jit(jax.random.key(0), config=SMALL)
    export_huggingface(tmp_path / "hf", params=params, config=SMALL)
    path = tmp_path / "hf" / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-4] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"the values of lm_head\.weight are not those that were written"):
        import_huggingface(tmp_path / "hf")
    save_weights(tmp_path / "weights", params=params, config=SMALL)
    stored = array_checksums.array_checksums(params)["layers.mlp.up"]
    listed = (tmp_path / "weights" / "files.json").read_text()
    assert stored[0][-1] in listed
    load_weights(tmp_path / "weights")
