"""Models to merge: random ones, in every kind of place, and what is expected of their merges."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from small_models import SMALL, init_jit

from allam_jax.tasks import runner
from allam_jax.training.checkpoints import Checkpointer
from allam_jax.training.load import CHECKPOINTS_FOLDER, save_run
from allam_jax.training.settings import CheckpointSettings
from allam_jax.weights.directory import save_weights
from allam_jax.weights.huggingface import export_huggingface
from configs import base

CONFIG = dataclasses.replace(SMALL, vocab_size=384, vocab_multiple=128, num_layers=2, init_std=0.3)


def params_of(seed):
    """Random, the scales of norms too; padding rows stay zero."""
    params = jax.tree.map(np.array, init_jit(jax.random.key(seed), config=CONFIG))
    rng = np.random.default_rng(seed)
    for norm in (params["final_norm"], params["layers"]["attention_norm"], params["layers"]["mlp_norm"]):
        norm["scale"] = rng.uniform(0.5, 1.5, norm["scale"].shape).astype(np.float32)
    return params


def place(root, name, params, *, tokenizer, config=CONFIG):
    """The same parameters as a weights directory, a Hugging Face directory in several files, and a run."""
    params = jax.tree.map(jnp.asarray, params)
    save_weights(root / name / "orbax", params=params, config=config, tokenizer_dir=tokenizer)
    export_huggingface(
        root / name / "huggingface", params=params, config=config, tokenizer_dir=tokenizer, max_shard_bytes=60_000
    )
    save_run(root / name / "run", config=config, tokenizer_dir=tokenizer, name="a run")
    with Checkpointer(root / name / "run" / CHECKPOINTS_FOLDER, CheckpointSettings(keep_last=3)) as checkpointer:
        state = {"params": params, "step": jnp.int32(8)}
        checkpointer.save(8, state=state, data={}, metadata={"config": {"param_dtype": "float32"}})


def config_of(*paths, steps=(), **options):
    config = base.get_config("merge")
    for number, path in enumerate(paths):
        config.merge.models[f"m{number}"] = base.merge_input(path=str(path), steps=tuple(steps))
    for key, value in options.items():
        config.merge[key] = value
    return config


def merge(workdir, *paths, **options):
    return runner.run(config_of(*paths, **options), workdir=workdir)


def tensors(directory):
    found = {}
    for file in directory.glob("*.safetensors"):
        found |= safetensors.numpy.load_file(file)
    return found


def assert_params(found, expected, *, rtol=1.2e-7):
    """Equal up to the last bit of float32."""
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(
        lambda f, e: np.testing.assert_allclose(np.asarray(f, np.float64), e, rtol=rtol, atol=1e-12), found, expected
    )


def combine(coefficients, trees):
    return jax.tree.map(
        lambda *leaves: sum(c * leaf.astype(np.float64) for c, leaf in zip(coefficients, leaves, strict=True)), *trees
    )
