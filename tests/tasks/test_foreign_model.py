"""A model as others publish it goes through training, expansion and export: what it says of itself comes out again."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from small_models import TINY, init_jit

from allam_jax.tasks import runner
from allam_jax.tokenizer.chat_template import stored_template
from allam_jax.tokenizer.generation_config import read_generation
from allam_jax.tokenizer.piece_merge import CHAT_TOKENS
from allam_jax.tokenizer.tokenizer import Tokenizer, directory_of, with_control_tokens
from allam_jax.training.load import load_model
from allam_jax.weights.huggingface import export_huggingface, import_huggingface
from configs import base

pytestmark = pytest.mark.usefixtures("one_device")
ROWS = 400  # of which the tokenizer uses 384
SAID = {"eos_token_id": [2, 5], "pad_token_id": 7, "temperature": 0.6, "top_p": 0.9}


@pytest.fixture(scope="module")
def foreign(launcher, tmp_path_factory):
    """A Qwen2 with spare rows, a list of ends and a chat template."""
    directory = tmp_path_factory.mktemp("foreign") / "model"
    config = dataclasses.replace(TINY, model_type="qwen2", vocab_size=ROWS, vocab_multiple=128)
    params = init_jit(jax.random.key(0), config=config)
    said = {"generation": SAID, "tokenizer_dir": launcher.root / "tokenizer"}
    export_huggingface(directory, params=params, config=config, **said)
    (directory / "files.json").unlink()  # another program wrote it
    (directory / "chat_template.jinja").write_text("{{ messages }}")
    return directory


def exported(weights, workdir):
    config = base.get_config("export")
    config.init.weights = str(weights)
    config.export.formats = ("huggingface", "gguf")
    runner.run(config, workdir=workdir)
    return workdir / "huggingface"


@pytest.mark.slow
def test_training_keeps_what_a_model_says(launcher, foreign, tmp_path):
    config = base.get_config("train")
    config.init.weights = str(foreign)
    config.data.sources.en = base.mixture(path=str(launcher.root / "corpus/en"), weight=1.0)
    config.data.update(seq_len=32, batch_size=8)
    config.train.steps = 2
    config.schedule.peak_lr = 1e-2
    config.metrics.tensorboard = False
    runner.run(config, workdir=tmp_path / "run")
    target = exported(tmp_path / "run", tmp_path / "export")
    assert json.loads((target / "generation_config.json").read_text()) == SAID | {"bos_token_id": 1}
    assert (target / "chat_template.jinja").read_text() == "{{ messages }}"
    values = json.loads((target / "config.json").read_text())
    assert (values["model_type"], values["vocab_size"], values["eos_token_id"]) == ("qwen2", ROWS, [2, 5])
    assert stored_template(directory_of(tmp_path / "export" / "gguf")) == "{{ messages }}"
    assert read_generation(directory_of(tmp_path / "export" / "gguf"))["eos_token_id"] == [2, 5]
    as_gguf, _ = import_huggingface(tmp_path / "export" / "gguf", param_dtype="float32")
    assert jax.tree.all(
        jax.tree.map(lambda a, b: bool(np.allclose(a, b, atol=1e-3)), as_gguf, load_model(target).params)
    )
    before, after = (import_huggingface(directory)[0] for directory in (foreign, target))
    changed = jax.tree.map(lambda old, new: bool(np.any(old != new)), before, after)
    assert all(jax.tree.leaves(changed["layers"]["attention"]["bias"]))


@pytest.mark.slow
def test_an_expansion_drops_the_spare_rows(foreign, tmp_path, caplog):
    merged = with_control_tokens(Tokenizer.load(foreign), CHAT_TOKENS)
    merged.save(tmp_path / "merged")
    config = base.get_config("expand")
    config.init.weights, config.tokenizer = str(foreign), str(tmp_path / "merged")
    runner.run(config, workdir=tmp_path / "expanded")
    target = exported(tmp_path / "expanded" / "weights", tmp_path / "export")
    assert "load it with PreTrainedTokenizerFast instead of AutoTokenizer" in caplog.text  # of this model type
    new, old = (import_huggingface(directory)[0] for directory in (target, foreign))
    assert merged.vocab_size == 386
    np.testing.assert_array_equal(new["embedding"]["table"][:384], old["embedding"]["table"][:384])
    assert not np.asarray(new["embedding"]["table"][386:]).any()
    assert np.asarray(new["embedding"]["table"][384:386]).any(axis=1).all()
