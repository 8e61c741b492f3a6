"""Weights and Hugging Face directories, read and written by two processes that hold half of the parameters each."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from processes import child_environment, free_port, run_together
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
    port = free_port()
    commands = [["-c", _PROCESS, tmp_path, port, index] for index in range(2)]
    ends = run_together(commands, environments=[child_environment(devices=2)] * 2)
    assert [end.status for end in ends] == [0, 0], ends
    assert all("holds neither tokenizer.model nor tokenizer.json" in end.out for end in ends), ends

    expected, _ = import_huggingface(tmp_path / "one", vocab_multiple=64)
    loaded = load_weights(tmp_path / "weights")
    assert loaded.metadata == {"step": 3}
    jax.tree.map(np.testing.assert_array_equal, loaded.params, expected)
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two", "weights"]
