"""The dry run: tokens, and the cost that task plan gives for the same stages."""

import json
import re

import pytest

from allam_jax.ablation.experiment import Experiment
from allam_jax.ablation.measures import metric
from allam_jax.ablation.vary import param
from allam_jax.launch.jobs import plan_jobs
from allam_jax.launch.preview import preview, training_tokens
from allam_jax.launch.runs import expand_runs
from allam_jax.tasks import plan
from allam_jax.tasks.registry import settings_of
from configs import tiny

# Large enough that costs are no rounding errors.
SIZE = {"stage.*.model.vocab_size": 32_000, "stage.*.train.steps": 10_000, "stage.*.data.batch_size": 64}
CLUSTER = {"stage.*.plan.gpus_per_node": 1, "stage.*.plan.compile": False}


def make(overrides, tmp_path):
    measure = metric("loss", key="loss", stage="continued", title="Loss")
    vary = param("stage.continued.schedule.peak_lr", 1e-4, 1e-3)
    experiment = Experiment(title="Title", claim="Claim.", config="", vary=vary, measures=(measure,))
    runs = expand_runs(experiment, tiny.get_config(), workdir=tmp_path, store=tmp_path / "stages", overrides=overrides)
    return experiment, runs


def test_the_cost_is_that_of_task_plan_with_shared_stages_once(tmp_path):
    experiment, runs = make(SIZE | CLUSTER, tmp_path)
    text = preview(experiment, runs, plan_jobs(runs, folder=tmp_path, environment={}))
    hours = {}
    for name in ("base", "continued"):
        plan.run(settings_of(runs[0].config.stage[name], task="plan"), tmp_path / name)
        hours[name] = json.loads((tmp_path / name / "plan.json").read_text())["training"]["gpu_hours"]
    found = re.search(r"Left to train: ([\d.]+) GPU-hours and [\d.e-]+ MWh on 1 node x 1 A100", text)
    assert float(found[1]) == pytest.approx(hours["base"] + 2 * hours["continued"], rel=1e-3)
    row, _ = (line for line in text.splitlines() if line.startswith("| peak_lr-0.001 |"))
    assert float(row.split("|")[4]) == pytest.approx(hours["base"] + hours["continued"], rel=1e-3)
    assert "163,840,000" in row  # 2 x 10,000 steps of 64 x 128 tokens


def test_an_unknown_vocabulary_leaves_the_cost_unknown(tmp_path):
    experiment, runs = make({}, tmp_path)
    text = preview(experiment, runs, plan_jobs(runs, folder=tmp_path, environment={}))
    assert "Cost unknown: stage base: config.model.vocab_size = 0" in text
    assert "GPU-hours" not in text


def test_a_branch_trains_from_the_step_of_its_checkpoint(tmp_path):
    overrides = {"stage.continued.init.weights": "@base/checkpoints/150", "stage.continued.init.step": True}
    _, runs = make(overrides, tmp_path)
    tokens = {stage.name: training_tokens(stage) for stage in runs[0].stages}
    assert tokens["continued"] == (300 - 150) * 8 * 128
    assert tokens["base"] == 800 * 8 * 128
    assert tokens["corpus"] == 0
