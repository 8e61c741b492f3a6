"""The blocks of docs/formats.md read what we write, with Orbax, TFDS and Grain alone; its table has every parameter."""

import dataclasses
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_models import SMALL

from allam_jax.corpus.document import Document
from allam_jax.corpus.shards import write_dataset
from allam_jax.model.llama import abstract_params
from allam_jax.model.llama_config import FAMILIES
from allam_jax.parallel.mesh import make_mesh
from allam_jax.training.checkpoints import Checkpointer
from allam_jax.training.settings import CheckpointSettings
from allam_jax.weights.directory import save_weights, shardings_on
from allam_jax.weights.huggingface import export_huggingface
from allam_jax.weights.orbax_arrays import flatten
from allam_jax.weights.pieces import pieces_of
from allam_jax.weights.safetensors_io import read_directory

PAGE = (Path(__file__).parent.parent / "docs" / "formats.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE, re.M | re.S)
STEP = 1234
TEXTS = [f"document {number}" for number in range(9)]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A run, an export in both formats and a dataset; the run's parameters lie on eight devices."""
    root = tmp_path_factory.mktemp("formats")
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: jnp.asarray(rng.standard_normal(leaf.shape, np.float32)), abstract_params(SMALL))
    sharded = jax.device_put(params, shardings_on(SMALL, mesh=make_mesh({"data": 2, "fsdp": 2, "tensor": 2})))
    with Checkpointer(root / "runs/mine/checkpoints", CheckpointSettings()) as checkpointer:
        state = {"params": sharded, "step": jnp.int32(STEP)}
        checkpointer.save(STEP, state=state, data={}, metadata={"tokens_by_source": {"en": 7}})
    save_weights(root / "runs/mine/export/orbax", params=params, config=SMALL)
    export_huggingface(root / "runs/mine/export/huggingface", params=params, config=SMALL)
    documents = [Document(text=text, id=text, source="en", language="en") for text in TEXTS]
    write_dataset(documents, directory=root / "corpus/en", name="en", validation_share=0.2)
    return root, params


def results_of(block: str, root: Path) -> dict:
    """The names that a block of the page leaves behind."""
    names: dict = {}
    exec(block.replace("/path/to", str(root)).replace("/STEP/", f"/{STEP}/"), names)
    return names


def assert_params(found, expected):
    assert {path: np.asarray(leaf).tobytes() for path, leaf in flatten(found).items()} == {
        path: np.asarray(leaf).tobytes() for path, leaf in flatten(expected).items()
    }


def test_a_stock_checkpoint_manager_opens_a_run(written):
    root, params = written
    found = results_of(BLOCKS[0], root)
    assert (found["step"], found["tokens"]) == (STEP, {"en": 7})
    assert found["found"]["state"]["step"] == STEP
    assert_params(found["params"], params)


def test_a_stock_checkpointer_puts_a_state_on_one_device(written):
    root, params = written
    found = results_of(BLOCKS[1], root)["params"]
    assert_params(found, params)
    assert {len(leaf.sharding.device_set) for leaf in jax.tree.leaves(found)} == {1}


def test_ten_lines_read_an_export(written):
    root, params = written
    assert len([line for line in BLOCKS[2].splitlines() if line]) <= 10
    found = results_of(BLOCKS[2], root)
    assert_params(found["params"], params)
    stored = read_directory(root / "runs/mine/export/huggingface")
    np.testing.assert_array_equal(found["q_proj"], stored["model.layers.0.self_attn.q_proj.weight"].read_rows())
    np.testing.assert_array_equal(found["table_VD"], stored["model.embed_tokens.weight"].read_rows())


def test_tfds_and_grain_read_a_dataset(written):
    found = results_of(BLOCKS[3], written[0])
    documents = [record["text"].decode() for record in found["documents"]]
    assert set(documents) < set(TEXTS)
    assert sorted(found["shuffled"]) == sorted(documents) != list(found["shuffled"])


def test_the_table_has_every_parameter_with_its_axes():
    rows = dict(re.findall(r"^\| `([\w.]+)` \| ([LVDNKHF, ]+) \| ", PAGE, re.M))
    letters = {"L": 3, "V": 128, "D": 32, "N": 8, "K": 4, "H": 6, "F": 48}
    configs = [dataclasses.replace(SMALL, model_type=model_type) for model_type in FAMILIES]
    shapes = {
        ".".join(path): leaf.shape for config in configs for path, leaf in flatten(abstract_params(config)).items()
    }
    assert {name: tuple(letters[letter] for letter in axes.split(", ")) for name, axes in rows.items()} == shapes
    for config in configs:
        for path, pieces in pieces_of(config).items():
            tensor = re.sub(r"^model\.(layers\.\d+\.)?", "", pieces[0].name)
            assert re.search(rf"^\| `{'.'.join(path)}` .*`{re.escape(tensor)}`", PAGE, re.M), path
