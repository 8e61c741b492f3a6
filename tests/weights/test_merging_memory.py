"""Merging two models of 2 GB, one in each format, stays below 1 GB resident."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from allam_jax.model.llama import abstract_params
from allam_jax.model.llama_config import LlamaConfig
from allam_jax.weights.directory import save_weights
from allam_jax.weights.huggingface import export_huggingface
from allam_jax.weights.orbax_arrays import open_array, read_part
from allam_jax.weights.streamed import StreamedArray

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
LARGE = LlamaConfig(
    vocab_size=32_000,
    vocab_multiple=128,
    dim=1536,
    num_layers=15,
    num_heads=24,
    num_kv_heads=24,
    head_dim=64,
    mlp_dim=4096,
    tie_embeddings=False,
    norm_eps=1e-5,
    rope_theta=10_000.0,
)

MEASURE = """
import resource, sys
from pathlib import Path
from allam_jax.weights.huggingface import export_huggingface
from allam_jax.weights.merged import WeightedSum, merged_params
from allam_jax.weights.directory import save_weights
from allam_jax.training.load import open_stored

first, second, out = map(Path, sys.argv[1:])
models = [open_stored(path) for path in (first, second)]
params = merged_params([m.params for m in models], config=models[0].config, method=WeightedSum((0.25, 0.75)))
save_weights(out / "orbax", params=params, config=models[0].config)
export_huggingface(out / "huggingface", params=params, config=models[0].config, max_shard_bytes=5 * 10**8)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
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


@pytest.mark.timeout(1800)
def test_two_models_of_2_gb(tmp_path):
    size = LARGE.num_parameters * 4
    assert size > 2 * 10**9
    try:
        export_huggingface(tmp_path / "a", params=random_params(0), config=LARGE, max_shard_bytes=5 * 10**8)
        save_weights(tmp_path / "b", params=random_params(1), config=LARGE)
        # Of a process started from this one the system would count this one's memory, unless a shell lies between.
        command = ["sh", "-c", '"$@"; exit', "sh", sys.executable, "-c", MEASURE]
        run = subprocess.run(
            [*command, *(str(tmp_path / name) for name in ("a", "b", "out"))],
            env=os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": ""},
            capture_output=True,
            text=True,
            check=False,
        )
        assert run.returncode == 0, run.stderr[-3000:]
        peak = int(run.stdout)
        assert peak < 10**9, f"{peak:,} bytes resident"
        folder = tmp_path / "out" / "orbax" / "params"
        found = read_part(open_array(folder, "layers.mlp.down"), (7,), folder=folder, name="layers.mlp.down")
        parts = [random_params(seed)["layers"]["mlp"]["down"][7].astype(np.float64) for seed in (0, 1)]
        np.testing.assert_allclose(found, 0.25 * parts[0] + 0.75 * parts[1], rtol=1e-6, atol=1e-7)
        stored = sum(path.stat().st_size for path in (tmp_path / "out" / "huggingface").glob("*.safetensors"))
        assert size < stored < 1.001 * size
    finally:
        shutil.rmtree(tmp_path)
