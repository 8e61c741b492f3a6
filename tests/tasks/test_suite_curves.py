"""Scores of suites over the checkpoints of a run: the recipe that asks them, and the curves."""

import json
from urllib.parse import urlencode

import pytest

from allam_jax.errors import UserError
from allam_jax.tasks import runner
from allam_jax.tasks.registry import settings_of
from configs import base
from configs.suites import compare, over_training


def test_curves_of_stages(tmp_path, drawn):
    config = base.get_config("suite_curves")
    for step, accuracy in ((200, 0.7), (100, 0.5)):
        scores = {"accuracy": accuracy, "low": accuracy - 0.1, "high": accuracy + 0.1, "chance": 0.25}
        (tmp_path / str(step)).mkdir()
        (tmp_path / str(step) / "harness.json").write_text(json.dumps({"choices": {"acva": scores}}))
        config.suite_curves.stages[f"step_{step}"] = str(tmp_path / str(step))
    rows = [{"step": step, "loss": 5 - step / 100} for step in range(1, 201)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config.suite_curves.run = str(tmp_path)
    assert runner.run(config, workdir=tmp_path / "out") == {"acva": 0.7}
    accuracy, loss = drawn[0].axes
    assert accuracy.lines[0].get_xydata().tolist() == [[100, 0.5], [200, 0.7]]
    assert set(accuracy.lines[1].get_ydata()) == {0.25}
    assert len(loss.lines) == 2  # raw and smoothed
    assert loss.lines[0].get_xydata()[-1].tolist() == [200, 3]
    config.suite_curves.stages.last = "x"
    with pytest.raises(UserError, match="stages.last: expected a name like step_1000"):
        runner.run(config, workdir=tmp_path / "out")


def test_a_stage_for_each_checkpoint(tmp_path):
    for step in (20, 100, 3):
        (tmp_path / "checkpoints" / str(step)).mkdir(parents=True)
    (tmp_path / "checkpoints" / "20.damaged").mkdir()
    config = over_training.get_config("full?" + urlencode({"run": tmp_path, "acva": "a b.jsonl", "items": 7}))
    assert config.stages[-1] == "curves"
    assert sorted(config.stages[:-1]) == ["step_100", "step_20", "step_3"]
    first = settings_of(config.stage["step_20"])
    assert first.init.weights == str(tmp_path / "checkpoints" / "20")
    assert (first.harness.suites["acva"].path, first.harness.suites["acva"].items) == ("a b.jsonl", 7)
    assert config.stage.curves.suite_curves.stages.step_100 == "@step_100"
    with pytest.raises(UserError, match="holds no checkpoints"):
        over_training.get_config()


def test_a_recipe_that_compares_models(tmp_path):
    (tmp_path / "ar").mkdir()
    (tmp_path / "ar" / "dataset_info.json").write_text("{}")
    given = {"models": "old=a b,new=c", "corpus": tmp_path, "acva": "acva.jsonl"}
    config = compare.get_config("full?" + urlencode(given))
    assert list(config.stages) == ["suites_old", "suites_new", "contamination", "report"]
    assert settings_of(config.stage.suites_old).init.weights == "a b"
    assert settings_of(config.stage.contamination).contamination.corpora["ar"].path == str(tmp_path / "ar")
    report = settings_of(config.stage.report).suite_report
    assert (report.models["new"], report.contamination) == ("@suites_new", "@contamination")
    for wrong, message in (({"models": "a"}, "expected NAME=PATH"), ({"corpus": "none"}, "holds no datasets")):
        with pytest.raises(UserError, match=message):
            compare.get_config("full?" + urlencode(given | wrong))
