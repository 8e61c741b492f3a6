"""Runs lm-evaluation-harness on a model of ours: the user's suites, and the harness's own tasks."""

import contextlib
import dataclasses
import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lm_eval.evaluator import simple_evaluate
from lm_eval.loggers import EvaluationTracker
from lm_eval.tasks import TaskManager

from allam_jax.errors import UserError, nearest
from allam_jax.evaluation.harness_model import HarnessModel
from allam_jax.evaluation.harness_tasks import WrittenSuite, write_suite
from allam_jax.evaluation.settings import HarnessSettings
from allam_jax.files import remove
from allam_jax.parallel.distributed import broadcast, is_main_process

_BOOTSTRAP = 1000  # samples for standard errors of metrics that are no means


def write_suites(options: HarnessSettings, *, directory: Path, seed: int) -> list[WrittenSuite]:
    """Writes the task files of the user's suites, once for all processes. UserError if one cannot be used."""
    written = []
    if is_main_process():
        remove(directory)
        directory.mkdir(parents=True)
        for name, suite in options.suites.items():
            written.append(
                write_suite(
                    name,
                    suite,
                    directory=directory,
                    seed=seed,
                    permuted=options.permuted,
                    section=options.section_name,
                )
            )
    return [WrittenSuite(**values) for values in broadcast([dataclasses.asdict(suite) for suite in written])]


def evaluate(
    model: HarnessModel, options: HarnessSettings, suites: Sequence[WrittenSuite], *, directory: Path
) -> dict[str, Any]:
    """What the harness gives for all suites and tasks, with samples.

    Args:
        model: what is asked.
        options: the tasks, and how they are asked.
        suites: whose task files lie in `directory`.
        directory: of task files.

    Raises:
        UserError: there is no such task, its data cannot be opened, or it runs programs that a model writes.
    """
    parts = []
    if suites:
        manager = TaskManager(include_path=str(directory), include_defaults=False)
        names = [task for suite in suites for task in (*suite.tasks, *suite.permuted)]
        parts.append(_evaluated(model, names, manager, options=options, shots=None, limit=None))
    if options.tasks:
        manager = _manager_of(options)
        shots, limit = (None if options.shots < 0 else options.shots), options.limit or None
        parts.append(_evaluated(model, list(options.tasks), manager, options=options, shots=shots, limit=limit))
    merged = dict(parts[0])
    for part in parts[1:]:
        if both := sorted(set(merged["results"]) & set(part["results"])):
            raise UserError(f"config.harness.suites.{both[0]}: the harness has a task of this name; choose another one")
        for key, value in part.items():
            if isinstance(value, Mapping) and isinstance(merged.get(key), Mapping):
                merged[key] = {**merged[key], **value}
    return merged


def save(evaluated: Mapping[str, Any], *, directory: Path) -> None:
    """Writes the harness's own files, which its tools read: aggregated results, and samples of each task."""
    remove(directory)
    tracker = EvaluationTracker(output_path=str(directory))
    tracker.general_config_tracker.model_name_sanitized = "model"
    samples = evaluated["samples"]
    tracker.save_results_aggregated(results={k: v for k, v in evaluated.items() if k != "samples"}, samples=samples)
    for task, logged in samples.items():
        tracker.save_results_samples(task_name=task, samples=[dict(sample) for sample in logged])


def _manager_of(options: HarnessSettings) -> TaskManager:
    """Knows the tasks of the user's folder, and those of the package, which take a while, where they are needed."""
    given = options.include_path or None
    manager = TaskManager(include_path=given, include_defaults=False)
    if set(options.tasks) <= set(manager.all_tasks):
        return manager
    manager = TaskManager(include_path=given)
    for name in options.tasks:
        if name not in manager.all_tasks:
            raise UserError(f"config.harness.tasks: no task {name!r}; {nearest(name, manager.all_tasks)}")
    return manager


def _evaluated(
    model: HarnessModel,
    names: list[str],
    manager: TaskManager,
    *,
    options: HarnessSettings,
    shots: int | None,
    limit: int | None,
) -> dict[str, Any]:
    opened: list[Any] = []
    with _quiet():
        for name in names:
            with _opening(name):
                loaded = manager.load([name])
            if any(getattr(task, "UNSAFE_CODE", False) for task in loaded["tasks"].values()):
                raise UserError(
                    f"task {name}: runs programs that a model writes, outside of a sandbox; use task programs"
                )
            opened += [name] if loaded["groups"] else loaded["tasks"].values()
        found = simple_evaluate(
            model=model,
            tasks=opened,
            num_fewshot=shots,
            limit=limit,
            task_manager=manager,
            bootstrap_iters=_BOOTSTRAP,
            apply_chat_template=options.as_chat,
            system_instruction=options.system or None,
        )
    assert found is not None  # the harness sees one process
    return dict(found)


@contextlib.contextmanager
def _opening(name: str) -> Iterator[None]:
    """Errors of the libraries that open a task's data, as one line."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # whatever a task's code and the libraries of data sets raise
        said = " ".join(str(error).split())[:200]
        raise UserError(
            f"task {name}: its data cannot be opened ({type(error).__name__}: {said}); give local files, or "
            "config.harness.hub=True to download them"
        ) from None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The harness's log without a line for each task, and nothing of it on standard output."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        logger.setLevel(level)
