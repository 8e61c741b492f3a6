"""What a path to a model means: the same parameters from a weights directory, an export, a run and a checkpoint."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_models import SMALL, init_jit

from allam_jax.errors import UserError
from allam_jax.parallel.mesh import make_mesh
from allam_jax.training.checkpoints import Checkpointer
from allam_jax.training.load import CHECKPOINTS_FOLDER, load_model, save_run
from allam_jax.training.settings import CheckpointSettings
from allam_jax.training.stored_checkpoints import step_path
from allam_jax.weights.directory import save_weights, shardings_on
from allam_jax.weights.huggingface import export_huggingface

CONFIG = dataclasses.replace(SMALL, vocab_multiple=128, num_layers=2)  # 128: what an import takes


@pytest.fixture(scope="module")
def params():
    return init_jit(jax.random.key(0), config=CONFIG)


@pytest.fixture(scope="module")
def places(tmp_path_factory, params):
    """Every kind of place, with these parameters; the run's first checkpoint has others."""
    root = tmp_path_factory.mktemp("places")
    tokenizer = root / "tokenizer"
    tokenizer.mkdir()
    (tokenizer / "tokenizer.json").write_text("{}")
    save_weights(root / "weights", params=params, config=CONFIG, tokenizer_dir=tokenizer, metadata={"step": 2})
    export_huggingface(root / "huggingface", params=params, config=CONFIG, tokenizer_dir=tokenizer)
    save_run(root / "run", config=CONFIG, tokenizer_dir=tokenizer, name="a run")
    with Checkpointer(root / "run" / CHECKPOINTS_FOLDER, CheckpointSettings(keep_last=2)) as checkpointer:
        for step, tree in ((1, jax.tree.map(jnp.zeros_like, params)), (2, params)):
            state = {"params": tree, "step": jnp.int32(step)}
            checkpointer.save(step, state=state, data={}, metadata={"config": {"param_dtype": "float32"}})
    return root


def assert_params(found, expected) -> None:
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.parametrize("name", ["weights", "huggingface", "run", "run/checkpoints", "run/checkpoints/2"])
def test_every_place_gives_the_same(places, params, name):
    loaded = load_model(places / name)
    assert_params(loaded.params, params)
    assert loaded.config == CONFIG
    assert loaded.tokenizer_dir is not None
    assert (loaded.tokenizer_dir / "tokenizer.json").read_text() == "{}"
    if name != "huggingface":
        assert loaded.metadata["step"] == 2


def test_an_older_checkpoint(places):
    loaded = load_model(step_path(places / "run" / CHECKPOINTS_FOLDER, 1))
    assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(loaded.params))
    assert loaded.metadata["step"] == 1


@pytest.mark.parametrize("name", ["weights", "huggingface", "run"])
def test_mesh_and_dtype(places, params, name):
    mesh = make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    loaded = load_model(places / name, mesh=mesh, param_dtype="bfloat16").params
    assert_params(loaded, jax.tree.map(lambda p: p.astype(jnp.bfloat16), params))
    wanted = shardings_on(CONFIG, mesh=mesh)
    same = jax.tree.map(lambda leaf, sharding: leaf.sharding.is_equivalent_to(sharding, leaf.ndim), loaded, wanted)
    assert all(jax.tree.leaves(same))


def test_what_else_is_there_is_told(tmp_path):
    with pytest.raises(UserError, match="no such directory; expected a weights directory, a Hugging Face directory"):
        load_model(tmp_path / "nothing")
    with pytest.raises(UserError, match="holds nothing"):
        load_model(tmp_path)
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(UserError, match=r"holds notes\.txt"):
        load_model(tmp_path)
    with pytest.raises(UserError, match="is a file"):
        load_model(tmp_path / "notes.txt")
    for name, message in (("model.gguf", "not a GGUF file"), ("adapter_config.json", "a LoRA adapter; merge it")):
        (tmp_path / name).write_text("x")
        beside = (tmp_path / "config.json", tmp_path / "adapter_model.safetensors")  # some trainers write both
        for others in ((), beside):
            for other in others:
                other.write_text("{}")
            with pytest.raises(UserError, match=message):
                load_model(tmp_path)
        for written in (tmp_path / name, *beside):
            written.unlink()
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(UserError, match="pickled weights"):
        load_model(tmp_path)
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(UserError, match="a run whose folder checkpoints is missing; put it back"):
        load_model(tmp_path)
    (tmp_path / CHECKPOINTS_FOLDER).mkdir()
    with pytest.raises(UserError, match="without a complete checkpoint"):
        load_model(tmp_path)
