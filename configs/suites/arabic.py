"""Suites in Arabic: those of the harness, and own task files for ACVA, EXAMS, MMLU and sets that the harness lacks.

    python run.py --config configs/suites/arabic.py --config.model=DIR --config.acva=acva/test.jsonl

Each file is named by its key: acva, exams, mmlu, araswag, aratruthfulqa, aramath, etec, aratrust. A suite without a
file is left out. `:harness` adds the Arabic tasks of the harness itself, whose data come from the hub.
"""

from ml_collections import ConfigDict

from allam_jax import recipe_inputs
from allam_jax.errors import UserError
from allam_jax.settings import setting
from configs import base
from configs.suites.suite_inputs import SuiteInputs, harness, mmlu

LETTERS = ("أ", "ب", "ج", "د", "هـ", "و")
ASKED = "السؤال: {question}\n{choices}\nالإجابة:"
# The harness's own tasks, with data of the hub.
HARNESS = (
    "arabicmmlu",
    "aexams",
    "arabic_leaderboard_alghafa",
    "arab_culture",
    "xstorycloze_ar",
    "belebele_arb_Arab",
    "xquad_ar",
)


class Inputs(SuiteInputs):
    """Files of the suites beside MMLU."""

    acva: str = setting("", "ACVA: id, question, answer نعم or لا")
    exams: str = setting("", "EXAMS in Arabic: id, question, A to D, answer")
    exams_examples: str = setting("", "its worked examples")
    araswag: str = setting("", "araSwag: question (the beginning), choices, answer")
    aratruthfulqa: str = setting("", "AraTruthfulQA: question, choices, answer")
    aramath: str = setting("", "araMath: question, choices, answer")
    etec: str = setting("", "ETEC: question, choices, answer")
    aratrust: str = setting("", "AraTrust: question, choices, answer, category")
    letters: str = setting("arabic", "of the choices", choices=("arabic", "latin"))


INPUTS = {"full": Inputs(), "harness": Inputs(with_harness=True)}


def get_config(arg: str = "full") -> ConfigDict:
    _, given = recipe_inputs.read(INPUTS, arg)
    config = harness(given, tasks=HARNESS)
    letters = LETTERS if given.letters == "arabic" else ("A", "B", "C", "D", "E", "F")
    asked = {"letters": letters, "prompt": ASKED}
    lettered = {**asked, "items": given.items}
    listed = {**lettered, "choices": "choices"}
    suites = {
        "acva": base.suite(
            path=given.acva,
            fixed_choices=("نعم", "لا"),
            subject="id",
            prompt="هل العبارة التالية صحيحة؟ أجب بنعم أو لا.\nالعبارة: {question}\nالإجابة:",
            items=given.items,
        ),
        "exams_ar": base.suite(
            path=given.exams,
            examples=given.exams_examples if given.shots else "",
            shots=given.shots,
            subject="id",
            **lettered,
        ),
        "mmlu_ar": mmlu(given, instruction="فيما يلي أسئلة اختيار من متعدد مع إجاباتها.", **asked),
        "araswag": base.suite(
            path=given.araswag, choices="choices", letters=(), prompt="{question}", items=given.items
        ),
        "aratruthfulqa": base.suite(path=given.aratruthfulqa, **listed),
        "aramath": base.suite(path=given.aramath, **listed),
        "etec": base.suite(path=given.etec, **listed),
        "aratrust": base.suite(path=given.aratrust, subject="category", **listed),
    }
    there = {name: suite for name, suite in suites.items() if suite.path}
    if not there and not given.with_harness:
        raise UserError("no suite has a file: give --config.acva=FILE, or others of configs/suites/arabic.py")
    for name, suite in there.items():
        config.harness.suites[name] = suite
    return config
