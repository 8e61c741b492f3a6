"""Tracker MLflow: it gets the runs of a sweep when they are collected."""

import importlib
import logging
import os
from collections.abc import Iterator, Sequence
from typing import Any

from allam_jax.ablation.measures import METRICS_FILE, all_metrics
from allam_jax.ablation.outcomes import Outcome
from allam_jax.config import flatten
from allam_jax.errors import UserError
from allam_jax.launch.runs import SweepRun
from allam_jax.settings import as_dict

_RUN_TAG = "allam_jax.run"
_BATCH = 1000  # metrics in one call; MLflow accepts no more
_PARAM_BATCH = 100


def check_mlflow(uri: str = "") -> None:
    """Asks the tracking server something, before anything starts. UserError without the package or an answer."""
    mlflow = _package()
    _be_brief()
    try:
        mlflow.MlflowClient(tracking_uri=uri or None).search_experiments(max_results=1)
    except Exception as error:  # of MLflow, of its database or of its connection
        raise UserError(f"--tracker=mlflow: {_reason(error)}; check MLFLOW_TRACKING_URI") from error


def log_to_mlflow(runs: Sequence[SweepRun], outcomes: Sequence[Outcome], *, sweep: str, uri: str = "") -> int:
    """Logs the finished runs that MLflow does not have.

    Each run becomes a run of the MLflow experiment `sweep`. Its settings and config keys are the parameters; its
    measures and all metrics of its stages are the metrics.

    Runs and outcomes are in the same order. `uri` is the tracking server or directory; empty takes MLFLOW_TRACKING_URI
    or MLflow's default. Returns the number of runs that were logged.

    Raises:
        UserError: the package mlflow is not installed, or MLflow reports an error.
    """
    mlflow = _package()
    _be_brief()
    try:
        return _log(mlflow, runs, outcomes, sweep=sweep, uri=uri)
    except Exception as error:  # of MLflow, of its database or of its connection
        raise UserError(f"--tracker=mlflow: {_reason(error)}") from error


def _package() -> Any:
    try:
        return importlib.import_module("mlflow")
    except ImportError:
        raise UserError(
            "--tracker=mlflow needs the package mlflow, which is not installed; run `pip install mlflow`"
        ) from None


def _be_brief() -> None:
    """MLflow's own patience is many minutes, and it and its database log what they do."""
    for library in ("mlflow", "alembic"):
        logging.getLogger(library).setLevel(logging.WARNING)
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def _log(mlflow: Any, runs: Sequence[SweepRun], outcomes: Sequence[Outcome], *, sweep: str, uri: str) -> int:
    client = mlflow.MlflowClient(tracking_uri=uri or None)
    found = client.get_experiment_by_name(sweep)
    experiment = found.experiment_id if found else client.create_experiment(sweep)
    known = {
        run.data.tags.get(_RUN_TAG)
        for run in client.search_runs([experiment], filter_string="attributes.status = 'FINISHED'", max_results=5000)
    }
    logged = 0
    for run, outcome in zip(runs, outcomes, strict=True):
        identity = f"{run.name}:{run.stages[-1].fingerprint}"
        if identity in known:
            continue
        handle = client.create_run(experiment, run_name=run.name, tags={_RUN_TAG: identity}).info.run_id
        params = run.labels | flatten(as_dict(run.config)["stage"])
        entities = [mlflow.entities.Param(_key(key), str(value)[:500]) for key, value in params.items()]
        for batch in _batches(entities, _PARAM_BATCH):
            client.log_batch(handle, params=batch)
        points = [(key, value, 0) for key, value in outcome.values.items()]
        for stage, directory in run.directories.items():
            file = directory / METRICS_FILE
            for name, curve in all_metrics(file).items() if file.is_file() else ():
                points += [(f"{stage}/{name}", value, step) for step, value in curve]
        metrics = [mlflow.entities.Metric(_key(key), value, 0, step) for key, value, step in points]
        for batch in _batches(metrics, _BATCH):
            client.log_batch(handle, metrics=batch)
        client.set_terminated(handle)
        logged += 1
    return logged


def _batches(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for begin in range(0, len(items), size):
        yield items[begin : begin + size]


def _key(text: str) -> str:
    """The name for MLflow, which accepts letters, digits, _ - . / and spaces."""
    return "".join(character if character.isalnum() or character in "_-./ " else "_" for character in text)
