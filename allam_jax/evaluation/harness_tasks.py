"""Suites of the user's files as tasks of the harness: a folder with one task file and one file of items for each.

    DIR/NAME.yaml           a task, or a group of one task a subject where examples are those of the subject
    DIR/NAME.jsonl          its items, as `items.record_of` makes them
    DIR/NAME.examples.jsonl

The harness itself reads them too: `lm_eval --include_path DIR --tasks NAME`.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from allam_jax.errors import UserError
from allam_jax.evaluation.items import Question, drawn, read_items, record_of, shows_choices
from allam_jax.evaluation.settings import SuiteSettings
from allam_jax.files import json_text, write_text

PERMUTED = "_permuted"  # ends the names of tasks whose choices are in another order
_METRICS = ("acc", "acc_norm", "acc_bytes")


@dataclasses.dataclass(frozen=True)
class WrittenSuite:
    """The tasks of a suite, and what was left out of its files."""

    name: str
    tasks: tuple[str, ...]
    permuted: tuple[str, ...]  # the same items in another order; empty where no order is shown
    items: int
    problems: Mapping[str, tuple[str, ...]]


def write_suite(
    name: str, suite: SuiteSettings, *, directory: Path, seed: int, permuted: bool, section: str = "harness"
) -> WrittenSuite:
    """Writes the tasks of a suite.

    Args:
        name: of the suite.
        suite: where its items are, and how they are asked.
        directory: for the files.
        seed: draws items, and the other order of choices.
        permuted: whether to write tasks with that too.
        section: of the config, for errors.

    Raises:
        UserError: the files hold no items, or a subject has too few examples.
    """
    key = f"{section}.suites.{name}"
    found = read_items(suite.path, suite, key=f"{key}.path")
    items = drawn(found.items, suite.items, seed=seed)
    examples: Sequence[Question] = ()
    if suite.shots:
        if not suite.examples:
            raise UserError(f"config.{key}.examples: is empty, but shots = {suite.shots}; give files of examples")
        examples = read_items(suite.examples, suite, key=f"{key}.examples").items
    parts = _parts(name, items, examples, suite, key=key)
    turned: list[str] = []
    for task, (questions, shown) in parts.items():
        _write_task(task, questions, shown, suite, directory=directory)
        if permuted and shows_choices(suite):
            other = [question.permuted(seed) for question in questions]
            _write_task(task + PERMUTED, other, shown, suite, directory=directory)
            turned.append(task + PERMUTED)
    return WrittenSuite(name, tuple(parts), tuple(turned), len(items), found.problems)


def _parts(
    name: str, items: Sequence[Question], examples: Sequence[Question], suite: SuiteSettings, *, key: str
) -> dict[str, tuple[list[Question], list[Question]]]:
    """Task -> its items and examples: one task a subject where worked examples are those of a subject."""
    if not (suite.shots and suite.subject):
        if len(examples) < suite.shots:
            raise UserError(f"config.{key}.examples: {len(examples)} items, but shots = {suite.shots}; lower shots")
        return {name: (list(items), list(examples))}
    parts: dict[str, tuple[list[Question], list[Question]]] = {}
    for subject in dict.fromkeys(item.subject for item in items):
        shown = [example for example in examples if example.subject == subject]
        if len(shown) < suite.shots:
            raise UserError(
                f"config.{key}.examples: {len(shown)} of subject {subject!r}, but shots = {suite.shots}; add some, "
                'lower shots, or set subject to ""'
            )
        task = f"{name}_{''.join(c if c.isalnum() else '_' for c in subject)}"
        if task in parts:
            raise UserError(f"config.{key}: two subjects make a task called {task!r}; rename one of them")
        parts[task] = ([item for item in items if item.subject == subject], shown)
    return parts


def _write_task(
    task: str, questions: Sequence[Question], examples: Sequence[Question], suite: SuiteSettings, *, directory: Path
) -> None:
    files = {"test": directory / f"{task}.jsonl"}
    _write_items(files["test"], questions, suite)
    if examples:
        files["examples"] = directory / f"{task}.examples.jsonl"
        _write_items(files["examples"], examples, suite)
    described: dict[str, Any] = {
        "task": task,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {split: str(path.absolute()) for split, path in files.items()}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "prompt",
        "doc_to_choice": "choices",
        "doc_to_target": "answer",
        "num_fewshot": suite.shots,
        "metric_list": [{"metric": name, "aggregation": "mean", "higher_is_better": True} for name in _METRICS],
        "metadata": {"version": 1.0},
    }
    if examples:
        described |= {"fewshot_split": "examples", "fewshot_config": {"sampler": "first_n"}}
    if suite.instruction:
        described["description"] = "{{instruction}}\n\n"
    write_text(directory / f"{task}.yaml", json_text(described, indent=2) + "\n")  # JSON is YAML


def _write_items(path: Path, questions: Sequence[Question], suite: SuiteSettings) -> None:
    write_text(path, "".join(json_text(record_of(question, suite)) + "\n" for question in questions))
