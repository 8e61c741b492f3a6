"""The paper-scale configs, shrunk by overrides as a user would: they load, plan and really train."""

import importlib
import json
import math

import pytest

from allam_jax.errors import UserError
from allam_jax.tasks import runner
from allam_jax.training.metrics import read_metrics

VARIANTS = (
    *(("allam_7b", None), ("allam_13b", None), ("allam_70b", None)),
    *(("allam_7b_scratch", "english"), ("allam_7b_scratch", "mixed")),
    *(("allam_34b", "constant"), ("allam_34b", "release")),
    *(("sizes", "1b_24gb"), ("sizes", "7b_8h100"), ("sizes", "7b_64h100")),
)
SMALL = {
    **{"model.dim": 32, "model.num_layers": 2, "model.num_heads": 4, "model.num_kv_heads": 2, "model.head_dim": 8},
    **{"model.mlp_dim": 64, "model.vocab_size": 0, "model.vocab_multiple": 32, "mesh.data": -1, "mesh.fsdp": 1},
    **{"compute.compute_dtype": "float32", "data.seq_len": 32, "data.batch_size": 8, "train.loss_chunks": 2},
    **{"train.accumulation": 2, "train.steps": 4, "train.log_every": 1, "checkpoint.every": 2, "eval.every": 0},
    **{"eval.max_bytes": 2000, "eval.batch_size": 4, "guard.min_history": 2, "metrics.tensorboard": False},
}


def load(name: str, argument: str | None):
    module = importlib.import_module(f"configs.{name}")
    return module.get_config() if argument is None else module.get_config(argument)


def train(launcher, workdir, name: str, **overrides):
    """Trains the shrunk config (`FILE[:ARG]`) as a command; returns its rows of metrics."""
    corpus = {"english": "en"} if "english" in name else {"english": "en", "arabic": "ar", "translated": "ar"}
    paths = {
        f"{section}.sources.{source}.path": launcher.root / "corpus" / language
        for section in ("data", "eval")
        for source, language in corpus.items()
    }
    path, _, argument = name.partition(":")
    config = f"configs/{path}.py" + (f":{argument}" if argument else "")
    tokenizer = {"tokenizer": launcher.root / "tokenizer"}
    launcher.train(workdir, config=config, **SMALL | tokenizer | paths | overrides)
    return [row for row in read_metrics(workdir / "metrics.jsonl") if "loss" in row]


@pytest.fixture(scope="module")
def english(launcher, tmp_path_factory):
    """A base model: the English phase of the 7B, shrunk. Its workdir and rows of metrics."""
    workdir = tmp_path_factory.mktemp("english")
    return workdir, train(launcher, workdir, "allam_7b_scratch:english", **{"schedule.warmup_steps": 1})


@pytest.mark.slow
def test_english_warms_up_and_comes_down(english):
    rates = [row["learning_rate"] for row in english[1]]
    # Half way up, then a cosine over three steps from 3e-4 to a tenth of it.
    cosine = [3e-4 * (0.1 + 0.9 * (1 + math.cos(math.pi * r / 3)) / 2) for r in range(3)]
    assert rates == pytest.approx([1.5e-4, *cosine])


@pytest.mark.slow
def test_continued_runs_start_from_weights_at_a_constant_rate(launcher, english, tmp_path):
    overrides = {"init.weights": english[0], "optimizer.rewarm_steps": 2}
    rows = train(launcher, tmp_path, "allam_70b", **overrides)
    # Two updates of warm-up while the moments fill, then the rate that the base ended with.
    assert [row["learning_rate"] for row in rows] == pytest.approx([1e-5, 2e-5, 3e-5, 3e-5])


@pytest.mark.slow
def test_mixed_goes_on_with_the_moments(launcher, english, tmp_path):
    rows = train(launcher, tmp_path, "allam_7b_scratch:mixed", **{"init.weights": english[0]})
    assert [row["learning_rate"] for row in rows] == pytest.approx([3e-5] * 4)


@pytest.mark.slow
def test_a_release_decays_and_leaves_the_main_run_alone(launcher, tmp_path):
    main, release = tmp_path / "main", tmp_path / "release"
    warm = {"schedule.warmup_steps": 1}
    rows = train(launcher, main, "allam_34b", **warm)
    before = (main / "metrics.jsonl").read_bytes()
    branch = {"init.weights": main / "checkpoints" / "2", "schedule.decay_start": 2, "schedule.decay_steps": 2}
    decayed = train(launcher, release, "allam_34b:release", **warm | branch)
    assert [row["learning_rate"] for row in rows[1:]] == pytest.approx([1.5e-4] * 3)
    assert [row["step"] for row in decayed] == [3, 4]
    # 1 - sqrt(r) at r = 0 and 1/2
    assert [row["learning_rate"] for row in decayed] == pytest.approx([1.5e-4, 1.5e-4 * (1 - 0.5**0.5)])
    assert (main / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize(("name", "argument"), VARIANTS)
def test_plans_by_formula(tmp_path, name, argument):
    config = load(name, argument)
    config.task = "plan"
    config.plan.compile = False
    result = runner.run(config, workdir=tmp_path)
    assert result["memory_gib"] <= result["usable_gib"]
    training = json.loads((tmp_path / "plan.json").read_text())["training"]
    billions = {"allam_70b": 600, "allam_7b": 1200, "allam_13b": 1200}.get(name)
    phases = {"english": 4000, "mixed": 1200, "constant": 4000, "release": 42}
    billions = billions or (phases | {"1b_24gb": 2, "7b_8h100": 20, "7b_64h100": 20})[argument]
    assert training["tokens"] / 1e9 == pytest.approx(billions, rel=0.01)


@pytest.mark.parametrize(
    ("name", "good"),
    [
        ("allam_7b_scratch", "english or mixed"),
        ("allam_34b", "constant or release"),
        ("sizes", "1b_24gb, 7b_8h100 or 7b_64h100"),
    ],
)
def test_unknown_phases(name, good):
    with pytest.raises(UserError, match=f"{name}.py:nonsense: expected {good}"):
        load(name, "nonsense")
