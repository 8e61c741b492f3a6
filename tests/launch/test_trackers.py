"""Trackers: MLflow gets what the files say, once; without it, one line says so. Weights & Biases gets names."""

import sys

import numpy as np
import pytest

from allam_jax.ablation.experiment import Experiment
from allam_jax.ablation.measures import metric
from allam_jax.ablation.outcomes import Outcome
from allam_jax.ablation.vary import param
from allam_jax.errors import UserError
from allam_jax.files import write_json
from allam_jax.launch.jobs import plan_jobs
from allam_jax.launch.runs import expand_runs
from allam_jax.launch.trackers import log_to_mlflow
from allam_jax.training.metrics import MetricsWriter
from allam_jax.training.settings import MetricsSettings
from configs import tiny


@pytest.fixture
def runs(tmp_path):
    """Two runs with a few written metrics."""
    measure = metric("loss", key="loss", stage="continued", title="Loss")
    vary = param("stage.continued.train.steps", 1, 2)
    experiment = Experiment(title="", claim="", config="", vary=vary, measures=(measure,))
    runs = expand_runs(experiment, tiny.get_config(), workdir=tmp_path, store=tmp_path / "stages", overrides={})
    for run in runs:
        directory = run.directories["continued"]
        with MetricsWriter(directory, MetricsSettings(tensorboard=False)) as writer:
            for step in (1, 2, 3):
                writer.write(step, {"loss": run.labels["steps"] / step, "by_layer": np.array([1.0, step])})
        write_json(directory / "result.json", {})
    return runs


def test_without_mlflow_it_says_so(runs, monkeypatch):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(UserError, match="--tracker=mlflow needs the package mlflow, which is not installed"):
        log_to_mlflow(runs, [], sweep="sweep")


@pytest.mark.slow
def test_mlflow_gets_every_metric_once(runs, tmp_path):
    mlflow = pytest.importorskip("mlflow")
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    outcomes = [
        Outcome(run=r.name, labels=r.labels, values={"loss": r.labels["steps"] / 3}, curves={}, seconds=0) for r in runs
    ]
    assert log_to_mlflow(runs, outcomes, sweep="sweep", uri=uri) == 2
    assert log_to_mlflow(runs, outcomes, sweep="sweep", uri=uri) == 0
    client = mlflow.MlflowClient(tracking_uri=uri)
    logged = client.search_runs([client.get_experiment_by_name("sweep").experiment_id])
    assert {run.info.run_name for run in logged} == {"steps-1", "steps-2"}
    for run in logged:
        steps = int(run.data.params["steps"])
        assert run.data.params["continued.train.steps"] == str(steps)
        history = client.get_metric_history(run.info.run_id, "continued/loss")
        assert [(point.step, point.value) for point in history] == [(step, steps / step) for step in (1, 2, 3)]
        assert [p.value for p in client.get_metric_history(run.info.run_id, "continued/by_layer/01")] == [1.0, 2.0, 3.0]
        assert run.data.metrics["loss"] == pytest.approx(steps / 3)


def test_weights_and_biases_knows_every_job_by_its_name(runs, tmp_path):
    jobs = plan_jobs(runs, folder=tmp_path, environment={"WANDB_RUN_GROUP": "sweep"})
    assert jobs[-1].environment == {"WANDB_RUN_GROUP": "sweep", "WANDB_NAME": "steps-2"}
