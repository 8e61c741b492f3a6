"""Task `harness`: suites of lm-evaluation-harness, and of the user's files, on a model."""

import dataclasses
import os
from pathlib import Path
from typing import Any

from absl import logging

from allam_jax import files
from allam_jax.errors import UserError
from allam_jax.evaluation.likelihood import Likelihood
from allam_jax.generation.engine import Engine
from allam_jax.parallel.distributed import is_main_process
from allam_jax.settings import Settings
from allam_jax.tasks.setup import open_engine, open_mesh, open_model
from allam_jax.tokenizer.chat_template import ChatTemplate

TASKS = "tasks"  # folder of the task files that are written
RESULTS = "lm_eval"  # folder of the harness's own files


def run(config: Settings, workdir: Path) -> dict[str, Any]:
    """Asks the model at `init.weights`; writes `harness.json`, a report, prompts, and the harness's own results."""
    options = config.harness
    if not options.tasks and not options.suites:
        raise UserError("config.harness: give tasks of the harness (tasks), or suites of your own files (suites)")
    if not options.hub:  # read when the libraries are imported
        os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1")
    try:
        from allam_jax.evaluation import harness_report, harness_run
        from allam_jax.evaluation.harness_model import HarnessModel
    except ImportError as error:
        raise UserError(f"task harness: needs {error.name}; pip install -r requirements-eval.txt") from None
    suites = harness_run.write_suites(options, directory=workdir / TASKS, seed=config.seed)
    mesh = open_mesh(config)
    loaded, tokenizer, tokenizer_dir = open_model(config, mesh=mesh)
    template = ChatTemplate.named(options.template, tokenizer=tokenizer, directory=tokenizer_dir)

    def engine() -> Engine:
        return open_engine(
            config,
            loaded,
            settings=config.engine,
            tokenizer=tokenizer,
            tokenizer_dir=tokenizer_dir,
            template=template if options.as_chat else None,
            mesh=mesh,
        )

    likelihood = Likelihood(
        loaded.params, config=loaded.config, options=config.compute, settings=config.likelihood, mesh=mesh
    )
    model = HarnessModel(
        tokenizer, likelihood=likelihood, engine=engine, template=template, max_new_tokens=options.max_new_tokens
    )
    evaluated = harness_run.evaluate(model, options, suites, directory=workdir / TASKS)
    found = harness_report.collect(evaluated, suites)
    work = {**dataclasses.asdict(likelihood.work), "cut_by_text": model.encoder.cuts.merged}
    if work["cut_by_text"]:
        logging.warning(
            "%d continuations were cut from their contexts by text: see docs/evaluation.md", work["cut_by_text"]
        )
    if is_main_process():
        result = {**found, "work": work}
        files.write_json(workdir / "harness.json", result)
        harness_report.write(
            workdir / "harness.md",
            found=found,
            suites=suites,
            samples=evaluated["samples"],
            work=work,
            title=f"Suites: {config.init.weights}",
        )
        harness_run.save(evaluated, directory=workdir / RESULTS)
    return {name: scores["accuracy"] for name, scores in found["choices"].items()} | {
        f"{name}/{metric}": values["value"]
        for name, all_ in found["metrics"].items()
        for metric, values in all_.items()
    }
