"""Weights and Hugging Face directories, read and written by two processes that hold half of the parameters each."""

import contextlib
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_models import SMALL

from allam_jax.model.llama import abstract_params
from allam_jax.weights.directory import load_weights
from allam_jax.weights.huggingface import export_huggingface, import_huggingface

CONFIG = SMALL

_PROCESS = """
import sys
from pathlib import Path
from allam_jax.parallel.distributed import initialize
folder, port, index = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
initialize(coordinator=f"localhost:{port}", num_processes=2, process_id=index, timeout_seconds=60)
import jax
from allam_jax.errors import UserError
from allam_jax.weights.huggingface import export_huggingface, import_huggingface
from allam_jax.weights.directory import load_weights, save_weights
from allam_jax.parallel.mesh import make_mesh

mesh = make_mesh({"data": 1, "fsdp": 2, "tensor": 2})
params, config = import_huggingface(folder / "one", mesh=mesh, vocab_multiple=64)
assert not params["layers"]["mlp"]["gate"].is_fully_addressable
save_weights(folder / "weights", params=params, config=config, metadata={"step": 3})
loaded = load_weights(folder / "weights", mesh=mesh)
export_huggingface(folder / "two", params=loaded.params, config=loaded.config)
try:  # on both, though only the first copies the tokenizer
    save_weights(folder / "weights", params=params, config=config, tokenizer_dir=folder)
except UserError as error:
    print(error)
"""


@pytest.mark.slow
def test_two_processes(tmp_path):
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda s: jnp.asarray(rng.standard_normal(s.shape), jnp.float32), abstract_params(CONFIG))
    export_huggingface(tmp_path / "one", params=params, config=CONFIG)
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(("", 0))
        port = str(probe.getsockname()[1])
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", _PROCESS, str(tmp_path), port, str(index)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=180) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert all("holds neither tokenizer.model nor tokenizer.json" in stdout for stdout, _ in outputs), outputs

    expected, _ = import_huggingface(tmp_path / "one", vocab_multiple=64)
    loaded = load_weights(tmp_path / "weights")
    assert loaded.metadata == {"step": 3}
    jax.tree.map(np.testing.assert_array_equal, loaded.params, expected)
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two", "weights"]
