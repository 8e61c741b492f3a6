"""Task `merge`, killed while it writes: nothing is half-written, and the same command finishes."""

import dataclasses
import signal

import jax
import numpy as np
import pytest
from merged_models import CONFIG, assert_params, combine, config_of
from processes import wait, wait_until
from small_models import init_jit

from allam_jax.tasks import runner
from allam_jax.training.load import load_model
from allam_jax.weights.directory import save_weights


@pytest.fixture(scope="module")
def large(launcher, tmp_path_factory):
    """Two models so large that writing takes a moment."""
    folder = tmp_path_factory.mktemp("large")
    config = dataclasses.replace(CONFIG, dim=256, num_layers=8, mlp_dim=1024, head_dim=32)
    for seed, name in enumerate("ab"):
        params = init_jit(jax.random.key(seed), config=config)
        save_weights(folder / name, params=params, config=config, tokenizer_dir=launcher.root / "tokenizer")
    return folder / "a", folder / "b"


@pytest.mark.slow
@pytest.mark.parametrize("format", ["orbax", "huggingface"])
def test_killed_half_way_nothing_is_half_written(launcher, large, tmp_path, format):
    """The second run clears what the first has left, and finishes."""
    workdir = tmp_path / "out"
    options = {"config": f"configs/merge.py:{large[0]},{large[1]}", "export.formats": f"('{format}',)"}
    process = launcher.start(workdir, **options)
    wait_until((workdir / f".{format}.partial").exists, process=process)
    process.kill()
    assert wait(process).status == -signal.SIGKILL
    assert {path.name for path in workdir.iterdir()} == {"config.json", "files.json", f".{format}.partial"}
    config = config_of(*large)
    config.export.formats = (format,)
    assert runner.run(config, workdir=workdir)["method"] == "average"
    assert {path.name for path in workdir.iterdir()} == {"config.json", "files.json", "merge.json", format}
    a, b, merged = (load_model(path).params for path in (*large, workdir / format))
    assert_params(merged, combine([0.5, 0.5], [jax.tree.map(np.asarray, tree) for tree in (a, b)]))
