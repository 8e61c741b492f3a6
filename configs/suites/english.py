"""Suites in English: MMLU of the user's files, and common tasks of the harness.

    python run.py --config configs/suites/english.py --config.model=DIR --config.mmlu=mmlu/test

`:harness` adds the harness's own tasks, whose data come from the hub, each with its own number of shots.
"""

from ml_collections import ConfigDict

from allam_jax import recipe_inputs
from allam_jax.errors import UserError
from allam_jax.settings import Section, setting
from configs import base
from configs.suites.arabic import MMLU_COLUMNS
from configs.suites.mmlu_categories import CATEGORIES

HARNESS = ("arc_challenge", "arc_easy", "boolq", "hellaswag", "openbookqa", "piqa", "winogrande", "truthfulqa_mc1")


class Inputs(Section):
    """Files of the suites, and the model."""

    model: str = setting("", "Hugging Face directory, weights directory or run")
    mmlu: str = setting("", "MMLU: a folder of CSV files SUBJECT_test.csv, without names of columns")
    mmlu_examples: str = setting("", "the folder of SUBJECT_dev.csv")
    shots: int = setting(0, "worked examples of MMLU", least=0)
    items: int = setting(0, "items of each suite, drawn by the seed; 0: all", least=0)
    with_harness: bool = setting(False, "add tasks of the harness, which need the hub")


INPUTS = {"full": Inputs(), "harness": Inputs(with_harness=True)}


def get_config(arg: str = "full") -> ConfigDict:
    _, given = recipe_inputs.read(INPUTS, arg)
    if not given.mmlu and not given.with_harness:
        raise UserError("no suite has a file: give --config.mmlu=FOLDER, or take configs/suites/english.py:harness")
    config = base.get_config("harness")
    config.init.weights = given.model
    if given.mmlu:
        config.harness.suites.mmlu = base.suite(
            path=given.mmlu,
            examples=given.mmlu_examples if given.shots else "",
            shots=given.shots,
            columns=MMLU_COLUMNS,
            subject="file",
            categories=CATEGORIES,
            instruction="The following are multiple choice questions (with answers) about {subject}.",
            items=given.items,
        )
    config.harness.tasks = HARNESS if given.with_harness else ()
    config.harness.hub = given.with_harness
    return config
