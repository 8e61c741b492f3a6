"""Task `harness`: suites of lm-evaluation-harness, and of the user's files, on a model."""

import dataclasses
import functools
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from absl import logging

from allam_jax import files
from allam_jax.errors import UserError
from allam_jax.evaluation.likelihood import Likelihood
from allam_jax.evaluation.score_log import ScoreLog
from allam_jax.evaluation.settings import HarnessSettings
from allam_jax.parallel.distributed import broadcast, is_main_process
from allam_jax.settings import Settings, as_dict
from allam_jax.tasks.inputs_of_task import inputs_of_settings
from allam_jax.tasks.setup import open_text_model

TASKS = "tasks"  # folder of the task files that are written
RESULTS = "lm_eval"  # folder of the harness's own files
ANSWERS = "answers.jsonl"  # to each item with choices, which task `suite_report` reads
SCORES = "scores.jsonl"  # log-probabilities so far


def run(config: Settings, workdir: Path) -> dict[str, Any]:
    """Asks the model at `init.weights`; writes `harness.json`, a report, prompts, and the harness's own results."""
    options = config.harness
    if not options.tasks and not options.suites:
        raise UserError("config.harness: give tasks of the harness (tasks), or suites of your own files (suites)")
    harness = import_harness(options)
    suites = harness.run.write_suites(options, directory=workdir / TASKS, seed=config.seed)
    opened = open_text_model(config, template=options.template)
    generates = opened if options.as_chat else dataclasses.replace(opened, template=None)  # turns end answers of chats
    weights = opened.weights
    likelihood = Likelihood(
        weights.params,
        config=weights.config,
        options=config.compute,
        settings=config.likelihood,
        mesh=opened.mesh,
        log=_log(config, workdir / SCORES),
    )
    model = harness.Model(
        opened.tokenizer,
        likelihood=likelihood,
        engine=functools.partial(generates.engine, config.engine),
        template=opened.template,
        max_new_tokens=options.max_new_tokens,
    )
    evaluated = harness.run.evaluate(model, options, suites, directory=workdir / TASKS)
    answers = harness.report.answers_of(evaluated, suites)
    found = harness.report.collect(evaluated, suites, answers)
    work = {**dataclasses.asdict(likelihood.work), "cut_by_text": model.encoder.cuts.merged}
    if work["cut_by_text"]:
        logging.warning("%d continuations were cut by text: see docs/evaluation.md", work["cut_by_text"])
    if is_main_process():
        result = {**found, "work": work}
        files.write_json(workdir / "harness.json", result)
        harness.report.write(
            workdir / "harness.md",
            found=found,
            suites=suites,
            samples=evaluated["samples"],
            work=work,
            title=f"Suites: {config.init.weights}",
        )
        lines = [{"suite": name, **dataclasses.asdict(item)} for name, items in answers.items() for item in items]
        files.write_text(workdir / ANSWERS, "".join(files.json_text(line) + "\n" for line in lines))
        harness.run.save(evaluated, directory=workdir / RESULTS)
    accuracies = {name: scores["accuracy"] for name, scores in found["choices"].items()}
    metrics = {f"{name}/{key}": of["value"] for name, all_ in found["metrics"].items() for key, of in all_.items()}
    return accuracies | metrics


def import_harness(options: HarnessSettings) -> SimpleNamespace:
    """The modules that need lm_eval: `run`, `report` and class `Model`. UserError if it is not installed."""
    if not options.hub:  # read when the libraries are imported
        os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1")
    try:
        from allam_jax.evaluation import harness_report, harness_run
        from allam_jax.evaluation.harness_model import HarnessModel
    except ImportError as error:
        raise UserError(f"suites: need {error.name}; pip install -r requirements-eval.txt") from None
    return SimpleNamespace(run=harness_run, report=harness_report, Model=HarnessModel)


def _log(config: Settings, path: Path) -> ScoreLog:
    """The scores that an earlier start of this run has written, if its weights were the same."""
    main = is_main_process()
    record = broadcast(inputs_of_settings(config)["init.weights"].record() if main else None)
    identity = {"weights": {name: hash_ for name, (_, _, hash_) in record.items()}, "compute": as_dict(config.compute)}
    return ScoreLog(path, identity=identity, writes=main, agree=broadcast)
