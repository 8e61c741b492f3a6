"""Suites in English: MMLU of the user's files, and common tasks of the harness.

    python run.py --config configs/suites/english.py --config.model=DIR --config.mmlu=mmlu/test

`:harness` adds the harness's own tasks, whose data come from the hub, each with its own number of shots.
"""

from ml_collections import ConfigDict

from allam_jax import recipe_inputs
from allam_jax.errors import UserError
from configs.suites.suite_inputs import SuiteInputs, harness, mmlu

HARNESS = ("arc_challenge", "arc_easy", "boolq", "hellaswag", "openbookqa", "piqa", "winogrande", "truthfulqa_mc1")

INPUTS = {"full": SuiteInputs(), "harness": SuiteInputs(with_harness=True)}


def get_config(arg: str = "full") -> ConfigDict:
    _, given = recipe_inputs.read(INPUTS, arg)
    if not given.mmlu and not given.with_harness:
        raise UserError("no suite has a file: give --config.mmlu=FOLDER, or take configs/suites/english.py:harness")
    config = harness(given, tasks=HARNESS)
    if given.mmlu:
        asked = "The following are multiple choice questions (with answers) about {subject}."
        config.harness.suites.mmlu = mmlu(given, instruction=asked)
    return config
