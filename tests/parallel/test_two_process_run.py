"""A training run by two processes over loopback, started as a user would start it, against the same run by one."""

import json

import numpy as np
import pytest
from processes import child_environment, free_port, run_together

from allam_jax.corpus.document import Document
from allam_jax.corpus.shards import write_dataset
from allam_jax.tokenizer.sentencepiece_training import train_sentencepiece

pytestmark = pytest.mark.slow

CONFIG = """
from configs import base


def get_config():
    config = base.get_config("train")
    config.tokenizer = "{root}/tokenizer"
    config.model.update(
        dim=32, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8, mlp_dim=64, vocab_multiple=32, max_position=32
    )
    config.data.sources.en = base.mixture(path="{root}/documents")
    config.data.sources.more = base.mixture(path="{root}/documents", split="validation", weight=0.0)
    config.data.phases.half = base.phase(from_step=4, en=1.0, more=1.0)
    config.data.update(seq_len=32, batch_size=8, lanes=4)
    config.eval.sources.en = base.mixture(path="{root}/documents", split="validation")
    config.eval.batch_size = 4
    config.train.update(steps=12, log_every=1)
    config.schedule.peak_lr = 1e-3
    config.metrics.tensorboard = False
    return config
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """Documents of random words, a tokenizer for them and a config."""
    root = tmp_path_factory.mktemp("two_processes")
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("abcdefghij"), size=rng.integers(2, 6))) for _ in range(60)]
    texts = [" ".join(rng.choice(words, size=rng.integers(5, 60))) for _ in range(200)]
    write_dataset(
        (Document(text=text, id=str(i), source="words", language="en") for i, text in enumerate(texts)),
        directory=root / "documents",
        name="words",
        validation_share=0.05,
    )
    train_sentencepiece(texts, output=root / "tokenizer", vocab_size=320)
    (root / "config.py").write_text(CONFIG.format(root=root))
    return root / "config.py"


@pytest.fixture
def train(recipe):
    """Runs run.py with `processes` processes; gives the rows of metrics.jsonl without the timing."""

    def run(workdir, *, processes, devices, **overrides):
        command = ["run.py", "--config", str(recipe), "--workdir", str(workdir)]
        command += [f"--config.{key}={value}" for key, value in overrides.items()]
        commands = [command]
        if processes > 1:
            together = [f"--coordinator=127.0.0.1:{free_port()}", f"--num_processes={processes}"]
            commands = [[*command, *together, f"--process_id={index}"] for index in range(processes)]
        results = run_together(commands, environments=[child_environment(devices=devices)] * processes, timeout=400)
        for finished in results:
            assert finished.status == 0, finished.err[-3000:]
        # One process prints the result. (Gloo, which carries CPU collectives, prints lines of its own.)
        printed = [[line for line in finished.out.splitlines() if line.startswith("{")] for finished in results]
        assert [len(lines) for lines in printed] == [1] + [0] * (processes - 1)
        rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
        timing = ("seconds", "tokens_per_second", "mfu", "eta")
        return [{key: value for key, value in row.items() if key not in timing} for row in rows]

    return run


def assert_same_curve(actual, expected, *, rtol):
    assert [row["step"] for row in actual] == [row["step"] for row in expected]
    for actual_row, expected_row in zip(actual, expected, strict=True):
        assert actual_row.keys() == expected_row.keys()
        for key in expected_row:
            np.testing.assert_allclose(
                actual_row[key], expected_row[key], rtol=rtol, err_msg=f"{key} at step {expected_row['step']}"
            )


def training(rows):
    return [row for row in rows if "loss" in row]


@pytest.mark.long
def test_two_processes_train_the_curve_of_one(train, tmp_path):
    one = train(tmp_path / "one", processes=1, devices=1)
    losses = [row["loss"] for row in training(one)]
    assert len(losses) == 12
    assert [row["mixture/more"] for row in training(one)] == [0.0] * 4 + [0.5] * 8
    assert losses[-1] < 0.95 * losses[0]

    # Past the change of mixture on two axes; then the tensor axis across processes, which build the same rows and go on
    # with what was saved on the other mesh.
    first = {"mesh.data": 2, "mesh.fsdp": 2, "train.steps": 8}
    two = train(tmp_path / "two", processes=2, devices=2, **first)
    assert_same_curve(training(two), training(one)[:8], rtol=1e-5)
    two = train(tmp_path / "two", processes=2, devices=1, **{"mesh.data": 1, "mesh.tensor": 2})
    assert_same_curve(training(two), training(one), rtol=1e-5)
    assert_same_curve(two[-1:], one[-1:], rtol=1e-5)  # held-out text
