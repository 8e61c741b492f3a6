"""Merging two models, one in each format, needs less memory than one of them."""

import shutil
import sys

import jax
import numpy as np
import pytest
from processes import child_environment, start, wait

from allam_jax.model.llama import abstract_params
from allam_jax.model.llama_config import LlamaConfig
from allam_jax.weights.directory import save_weights
from allam_jax.weights.huggingface import export_huggingface
from allam_jax.weights.orbax_arrays import open_array, read_part
from allam_jax.weights.streamed import StreamedArray

pytestmark = [pytest.mark.slow, pytest.mark.long]

LARGE = LlamaConfig(
    vocab_size=16_000,
    vocab_multiple=128,
    dim=1024,
    num_layers=12,
    num_heads=16,
    num_kv_heads=16,
    head_dim=64,
    mlp_dim=2816,
    tie_embeddings=False,
    norm_eps=1e-5,
    rope_theta=10_000.0,
)

MEASURE = """
import json, resource, sys
from pathlib import Path
from allam_jax.weights.huggingface import export_huggingface
from allam_jax.weights.merged import merged_params
from allam_jax.weights.directory import save_weights
from allam_jax.training.load import open_stored

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

first, second, out = map(Path, sys.argv[1:])
before = peak()
models = [open_stored(path) for path in (first, second)]
params = merged_params([m.params for m in models], config=models[0].config, method=(0.25, 0.75))
save_weights(out / "orbax", params=params, config=models[0].config)
export_huggingface(out / "huggingface", params=params, config=models[0].config, max_shard_bytes=2 * 10**8)
print(json.dumps({"before": before, "peak": peak()}))
"""


def random_params(seed):
    """Numbers that do not compress; layers are rotations of the same ones, to be quick."""
    numbers = np.random.default_rng(seed).standard_normal(LARGE.padded_vocab_size * LARGE.dim, np.float32)

    def leaf(path, whole):
        stacked = path[0].key == "layers"
        shape = whole.shape[1:] if stacked else whole.shape

        def compute(layer, dtype):
            return np.roll(numbers, -(layer or 0))[: np.prod(shape)].reshape(shape)

        return StreamedArray(whole.shape, np.dtype(np.float32), stacked, compute)

    return jax.tree_util.tree_map_with_path(leaf, abstract_params(LARGE))


def test_two_models_of_750_mb(tmp_path):
    size = LARGE.num_parameters * 4
    assert size > 7 * 10**8
    try:
        export_huggingface(tmp_path / "a", params=random_params(0), config=LARGE, max_shard_bytes=2 * 10**8)
        save_weights(tmp_path / "b", params=random_params(1), config=LARGE)
        # Of a process started from this one the system would count this one's memory, unless a shell lies between.
        command = ["sh", "-c", '"$@"; exit', "sh", sys.executable, "-c", MEASURE]
        command += [tmp_path / name for name in ("a", "b", "out")]
        run = wait(start(command, environment=child_environment()))
        assert run.status == 0, run.err[-3000:]
        grown = run.result["peak"] - run.result["before"]
        # Buffers of the libraries take 390 to 440 MB whatever the models' size; a whole model would come on top.
        assert grown < 0.75 * size, f"{grown:,} bytes for models of {size:,}: {run.result}"
        folder = tmp_path / "out" / "orbax"
        found = read_part(open_array(folder, "layers.mlp.down"), (7,), folder=folder, name="layers.mlp.down")
        parts = [random_params(seed)["layers"]["mlp"]["down"][7].astype(np.float64) for seed in (0, 1)]
        np.testing.assert_allclose(found, 0.25 * parts[0] + 0.75 * parts[1], rtol=1e-6, atol=1e-7)
        stored = sum(path.stat().st_size for path in (tmp_path / "out" / "huggingface").glob("*.safetensors"))
        assert size < stored < 1.001 * size
    finally:
        shutil.rmtree(tmp_path)
