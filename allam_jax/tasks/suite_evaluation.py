"""Suites of questions as an evaluation of a training run: `eval/suites/NAME/accuracy` in its metrics."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from allam_jax.errors import UserError
from allam_jax.evaluation.likelihood import Likelihood
from allam_jax.evaluation.metric_keys import SUITES
from allam_jax.model.llama import Params
from allam_jax.settings import Settings
from allam_jax.tasks.harness import import_harness
from allam_jax.tokenizer.chat_template import ChatTemplate
from allam_jax.training.loop import Evaluation
from allam_jax.training.origin import Origin

_LOGGED = ("accuracy", "low", "high", "chance", "macro_f1")


def open_suites(config: Settings, workdir: Path, *, origin: Origin, mesh: Mesh) -> list[Evaluation]:
    """The evaluation that `config.suite_eval` asks for, on the model under training; task files lie in `suites/`."""
    options = config.suite_eval
    if not options.suites and not options.tasks:
        return []
    return [Evaluation(suite=SUITES, every=options.every, scores=_scorer(config, workdir / SUITES, origin, mesh))]


def _scorer(
    config: Settings, directory: Path, origin: Origin, mesh: Mesh
) -> Callable[[Params], dict[str, dict[str, float]]]:
    options = config.suite_eval
    harness = import_harness(options)
    suites = harness.run.write_suites(options, directory=directory, seed=config.seed)
    likelihood = Likelihood({}, config=origin.model, options=config.compute, settings=config.likelihood, mesh=mesh)
    model = harness.Model(
        origin.tokenizer,
        likelihood=likelihood,
        engine=_no_engine,
        template=ChatTemplate.named(options.template, tokenizer=origin.tokenizer, directory=origin.tokenizer_dir),
        max_new_tokens=options.max_new_tokens,
    )

    def scores(params: Params) -> dict[str, dict[str, float]]:
        likelihood.params = params
        evaluated = harness.run.evaluate(model, options, suites, directory=directory)
        likelihood.params = {}  # the next step overwrites their memory
        found = harness.report.collect(evaluated, suites, harness.report.answers_of(evaluated, suites))
        chosen = {
            name: {key: of[key] for key in _LOGGED if of[key] is not None} for name, of in found["choices"].items()
        }
        return chosen | {
            name: {key: of["value"] for key, of in all_.items()} for name, all_ in found["metrics"].items()
        }

    return scores


def _no_engine() -> Any:
    raise UserError("config.suite_eval.tasks: a task generates text; during training only log-likelihoods are asked")
