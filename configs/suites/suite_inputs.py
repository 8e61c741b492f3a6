"""What the suites of every language share: the model, MMLU of the user's files, and tasks of the harness."""

from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from allam_jax.settings import Section, setting
from configs import base
from configs.suites.mmlu_categories import CATEGORIES


class SuiteInputs(Section):
    """The model, MMLU, and how much of each suite."""

    model: str = setting("", "Hugging Face directory, weights directory or run")
    mmlu: str = setting("", "MMLU in the language: a folder of CSV files SUBJECT_test.csv, without names of columns")
    mmlu_examples: str = setting("", "the folder of SUBJECT_dev.csv")
    shots: int = setting(0, "worked examples of MMLU and of other suites that have them", least=0)
    items: int = setting(0, "items of each suite, drawn by the seed; 0: all", least=0)
    with_harness: bool = setting(False, "add tasks of the harness, which need the hub")


def mmlu(given: SuiteInputs, *, instruction: str, **how: Any) -> ConfigDict:
    """MMLU in CSV files by subject, after the `instruction`; `how` are further keys of the suite."""
    return base.suite(
        path=given.mmlu,
        examples=given.mmlu_examples if given.shots else "",
        shots=given.shots,
        columns=("question", "A", "B", "C", "D", "answer"),
        subject="file",
        categories=CATEGORIES,
        instruction=instruction,
        items=given.items,
        **how,
    )


def harness(given: SuiteInputs, *, tasks: Sequence[str]) -> ConfigDict:
    """A config of task `harness` without suites; with the harness's own `tasks` if they are asked for."""
    config = base.get_config("harness")
    config.init.weights = given.model
    config.harness.tasks = tuple(tasks) if given.with_harness else ()
    config.harness.hub = given.with_harness
    return config
