"""The weights directory: what goes in comes out, on any mesh, or an error that names what is wrong."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_models import SMALL

from allam_jax.checksums import FileList, write_list
from allam_jax.errors import UserError
from allam_jax.model.llama import abstract_params
from allam_jax.parallel.mesh import make_mesh
from allam_jax.parallel.sharding import bytes_per_device
from allam_jax.weights.directory import check_vocabulary, load_weights, save_weights, shardings_on

CONFIG = SMALL
MESHES = {"one": (1, 1, 1), "fsdp8": (1, 8, 1), "tensor4": (1, 1, 4), "2x2x2": (2, 2, 2)}


def mesh_of(name: str):
    data, fsdp, tensor = MESHES[name]
    return make_mesh({"data": data, "fsdp": fsdp, "tensor": tensor}, devices=jax.devices()[: data * fsdp * tensor])


def random_params(*, dtype: str = "float32"):
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda shape: jnp.asarray(rng.standard_normal(shape.shape), jnp.dtype(dtype)), abstract_params(CONFIG)
    )


def assert_bitwise(found, expected) -> None:
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
        assert np.asarray(ours).tobytes() == np.asarray(theirs).tobytes()


@pytest.fixture
def saved(tmp_path):
    tokenizer = tmp_path / "tokenizer_files"
    tokenizer.mkdir()
    (tokenizer / "tokenizer.json").write_text("{}")
    metadata = {"step": 7, "parent": None, "languages": {"ar": "عربي"}}
    save_weights(
        tmp_path / "weights", params=random_params(), config=CONFIG, tokenizer_dir=tokenizer, metadata=metadata
    )
    return tmp_path / "weights"


def test_round_trip(saved):
    loaded = load_weights(saved)
    assert_bitwise(loaded.params, random_params())
    assert loaded.config == CONFIG
    assert loaded.metadata == {"step": 7, "parent": None, "languages": {"ar": "عربي"}}
    assert loaded.tokenizer_dir == saved / "tokenizer"
    assert (saved / "tokenizer" / "tokenizer.json").read_text() == "{}"
    assert [path.name for path in saved.parent.glob(".*")] == []


def test_an_older_directory_with_its_parameters_in_a_folder(saved):
    arrays = FileList.read(saved, remedy="").arrays
    ours = {"files.json", "model.json", "metadata.json", "tokenizer"}
    moved = [path for path in saved.iterdir() if path.name not in ours]
    (saved / "params").mkdir()
    for path in moved:
        path.rename(saved / "params" / path.name)
    write_list(saved, arrays=arrays)
    assert_bitwise(load_weights(saved).params, random_params())
    (saved / "params" / "d" / "x").write_text("x")
    with pytest.raises(UserError, match="params/d/x: is not among the files"):
        load_weights(saved)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_dtypes(tmp_path, dtype):
    params = random_params(dtype=dtype)
    save_weights(tmp_path / "x", params=params, config=CONFIG)
    assert_bitwise(load_weights(tmp_path / "x").params, params)
    widened = jax.tree.map(lambda p: p.astype(jnp.float32), params)
    assert_bitwise(load_weights(tmp_path / "x", param_dtype="float32").params, widened)
    assert load_weights(tmp_path / "x").tokenizer_dir is None
    assert load_weights(tmp_path / "x").metadata == {}


@pytest.mark.parametrize(
    ("source", "target"), [("one", "2x2x2"), ("2x2x2", "fsdp8"), ("fsdp8", "tensor4"), ("tensor4", "one")]
)
def test_saved_on_one_mesh_loaded_on_another(tmp_path, source, target):
    params = jax.device_put(random_params(), shardings_on(CONFIG, mesh=mesh_of(source)))
    save_weights(tmp_path / "x", params=params, config=CONFIG)
    mesh = mesh_of(target)
    loaded = load_weights(tmp_path / "x", mesh=mesh).params
    assert_bitwise(loaded, params)
    wanted = shardings_on(CONFIG, mesh=mesh)
    same = jax.tree.map(lambda leaf, sharding: leaf.sharding.is_equivalent_to(sharding, leaf.ndim), loaded, wanted)
    assert all(jax.tree.leaves(same))
    whole = sum(leaf.nbytes for leaf in jax.tree.leaves(loaded))
    assert max(bytes_per_device(loaded).values()) < 1.1 * whole / (mesh.shape["fsdp"] * mesh.shape["tensor"])


def test_a_failed_save_leaves_the_old_directory(saved):
    before = sorted(str(path) for path in saved.parent.rglob("*"))
    with pytest.raises(TypeError, match="not JSON serializable"):  # found when the parameters are written
        save_weights(saved, params=random_params(dtype="float16"), config=CONFIG, metadata={"x": object()})
    with pytest.raises(UserError, match="neither tokenizer"):
        save_weights(saved, params=random_params(dtype="float16"), config=CONFIG, tokenizer_dir=saved.parent)
    assert sorted(str(path) for path in saved.parent.rglob("*")) == before
    assert_bitwise(load_weights(saved).params, random_params())


def test_saving_replaces(saved):
    params = random_params(dtype="float16")
    save_weights(saved, params=params, config=CONFIG)
    assert_bitwise(load_weights(saved).params, params)
    assert load_weights(saved).tokenizer_dir is None


def test_parameters_of_another_architecture_are_not_saved(tmp_path):
    wider = dataclasses.replace(CONFIG, mlp_dim=64)
    with pytest.raises(
        UserError, match=r"layers/mlp/down has shape \(3, 48, 32\), but the architecture implies \(3, 64"
    ):
        save_weights(tmp_path / "x", params=random_params(), config=wider)
    tied = dataclasses.replace(CONFIG, tie_embeddings=True)
    with pytest.raises(UserError, match=r"head/kernel has shape .* implies none"):
        save_weights(tmp_path / "x", params=random_params(), config=tied)
    assert list(tmp_path.iterdir()) == []


def change_model_file(directory, change) -> None:
    values = json.loads((directory / "model.json").read_text())
    change(values)
    (directory / "model.json").write_text(json.dumps(values))
    write_list(directory, arrays=FileList.read(directory, remedy="").arrays)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v.update(format_version=99), "format_version = 99"),
        (lambda v: v["architecture"].update(moe=True), "moe"),
        (lambda v: v["architecture"].pop("dim"), "dim"),
        (lambda v: v.pop("architecture"), "architecture"),
        (lambda v: v["architecture"].update(vocab_size=300), r"embedding/table has shape \(128, 32\)"),
        (lambda v: v["architecture"].update(tie_embeddings=True), "head/kernel"),
    ],
)
def test_model_file_that_does_not_fit(saved, change, message):
    change_model_file(saved, change)
    with pytest.raises(UserError, match=message) as error:
        load_weights(saved)
    assert str(saved) in str(error.value)
    assert "\n" not in str(error.value)


def test_damaged_directories(saved):
    largest = max((saved / "ocdbt.process_0").rglob("*"), key=lambda path: path.stat().st_size)
    content = largest.read_bytes()
    largest.write_bytes(content[:-1])
    with pytest.raises(UserError, match=f"{largest}: is {len(content) - 1:,} bytes long instead of {len(content):,}"):
        load_weights(saved)
    largest.unlink()
    with pytest.raises(UserError, match=f"{largest}: is missing"):
        load_weights(saved)
    with pytest.raises(UserError, match=r"files\.json: is missing; the weights directory is incomplete"):
        load_weights(saved.parent)


def test_vocabulary_that_does_not_match():
    check_vocabulary(CONFIG, 125, tokenizer="t", weights="w")
    for size in (126, 118):
        with pytest.raises(UserError, match=f"w has 125 tokens but t has {size}: .* expand the weights"):
            check_vocabulary(CONFIG, size, tokenizer="t", weights="w")
    # An expansion begins with the weights' own tokenizer, so it is no remedy where that one has more tokens.
    with pytest.raises(UserError, match=r"w has 125 rows, but its own tokenizer has 126 .*added_tokens\.json"):
        check_vocabulary(CONFIG, 126, tokenizer="t", weights="w", is_own=True)
    check_vocabulary(CONFIG, 119, tokenizer="t", weights="w")  # 5 % of the rows may be padding
    check_vocabulary(CONFIG, 64, tokenizer="t", weights="w", is_own=True)


_NO_SPACE = """
import resource, signal, sys
from pathlib import Path
import jax
from allam_jax.errors import UserError
from allam_jax.model.llama_config import LlamaConfig
from allam_jax.weights.huggingface import export_huggingface
from allam_jax.model.llama import init_params
from allam_jax.weights.directory import save_weights

config = LlamaConfig(**eval(sys.argv[2]))
params = init_params(jax.random.key(0), config=config)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
for write in (save_weights, export_huggingface):
    try:
        write(Path(sys.argv[1]) / "x", params=params, config=config)
    except UserError as error:
        print(error)
"""


@pytest.mark.slow
def test_no_space(tmp_path):
    """A limit on the size of files stands in for a full disk: the system refuses to write on in the same way."""
    arguments = [str(tmp_path), repr(dataclasses.asdict(CONFIG))]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "XLA_FLAGS": ""}
    run = subprocess.run(
        [sys.executable, "-c", _NO_SPACE, *arguments], env=environment, capture_output=True, text=True, timeout=120
    )
    message = f"{tmp_path / 'x'}: cannot be written (File too large); check the disk and try again"
    assert run.stdout.splitlines() == [message, message], run.stderr
    assert "Traceback" not in run.stderr
    assert list(tmp_path.iterdir()) == []
