"""Task `merge` against mergekit on the same files: linear and slerp within 1e-6.

mergekit sums in float32 and we in float64, so that the last bits differ.
"""

import dataclasses

import jax
import numpy as np
import pytest
import safetensors.numpy
from small_models import SMALL, init_jit

from allam_jax.tasks import runner
from allam_jax.tokenizer.sentencepiece_training import train_sentencepiece
from allam_jax.tokenizer.tokenizer import Tokenizer
from allam_jax.weights.huggingface import export_huggingface
from configs import merge as merge_config

pytestmark = pytest.mark.parity

SHARD_BYTES = 60_000  # several files a model


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Two Hugging Face directories: a random model, and one some way from it, as after continued training."""
    root = tmp_path_factory.mktemp("models")
    words = [f"{a}{b}{c} {c}{a}" for a in "abcdefgh" for b in "klmnop" for c in "rstuvw"]
    train_sentencepiece(words, output=root / "tokenizer", vocab_size=300)
    size = Tokenizer.load(root / "tokenizer").vocab_size
    config = dataclasses.replace(SMALL, vocab_size=size, init_std=0.3)
    first = init_jit(jax.random.key(0), config=config)
    other = init_jit(jax.random.key(1), config=config)
    for name, params in {"a": first, "b": jax.tree.map(lambda p, q: 0.8 * p + 0.5 * q, first, other)}.items():
        export_huggingface(
            root / name,
            params=params,
            config=config,
            tokenizer_dir=root / "tokenizer",
            max_shard_bytes=SHARD_BYTES,
        )
    # The scales of the norms are ones and multiples of ones: parallel, where both interpolate linearly.
    return root / "a", root / "b"


def tensors(directory):
    found = {}
    for file in directory.glob("*.safetensors"):
        found |= safetensors.numpy.load_file(file)
    return found


def merge_ours(models, workdir, **options):
    config = merge_config.get_config(",".join(map(str, models)))
    config.export.formats = ("huggingface",)
    for name, weight in options.pop("weights", {}).items():
        config.merge.models[name].weight = weight
    config.merge.update(options)
    runner.run(config, workdir=workdir)
    return tensors(workdir / "huggingface")


def merge_theirs(configuration, out):
    # Here, so that the file is collected where only the core tests run and mergekit is not installed.
    from mergekit.config import MergeConfiguration
    from mergekit.merge import MergeOptions, run_merge

    options = MergeOptions(copy_tokenizer=False, write_model_card=False, quiet=True)
    run_merge(MergeConfiguration.model_validate(configuration), str(out), options)
    return tensors(out)


def compare(ours, theirs):
    assert ours.keys() == theirs.keys()
    assert len(ours) == 3 + 9 * SMALL.num_layers
    differences = {name: float(np.abs(ours[name] - theirs[name]).max()) for name in ours}
    assert max(differences.values()) < 1e-6, differences
    return max(differences.values())


@pytest.mark.parametrize("weights", [(0.3, 0.7), (2.0, 1.0)])
def test_linear(models, tmp_path, weights):
    ours = merge_ours(
        models, tmp_path / "ours", method="weighted", weights=dict(zip(("model_00", "model_01"), weights, strict=True))
    )
    theirs = merge_theirs(
        {
            "merge_method": "linear",
            "dtype": "float32",
            "models": [
                {"model": str(model), "parameters": {"weight": weight}}
                for model, weight in zip(models, weights, strict=True)
            ],
        },
        tmp_path / "theirs",
    )
    compare(ours, theirs)
    between = merge_ours(models, tmp_path / "t", method="linear", t=weights[1] / sum(weights))
    compare(between, theirs)


@pytest.mark.parametrize("t", [0.0, 0.3, 0.5, 1.0])
def test_slerp(models, tmp_path, t):
    ours = merge_ours(models, tmp_path / "ours", method="slerp", t=t)
    theirs = merge_theirs(
        {
            "merge_method": "slerp",
            "dtype": "float32",
            "base_model": str(models[0]),
            "models": [{"model": str(model)} for model in models],
            "parameters": {"t": t},
        },
        tmp_path / "theirs",
    )
    compare(ours, theirs)
    if 0 < t < 1:
        linear = merge_ours(models, tmp_path / "linear", method="linear", t=t)
        assert max(np.abs(ours[name] - linear[name]).max() for name in ours) > 1e-2  # it is not the same thing
