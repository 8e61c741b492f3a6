"""The Arabic suites on several models, items that occur in their corpora, and one page that compares the models.

    python run.py --config configs/suites/compare.py --config.models=base=DIR,continued=runs/mine \
        --config.acva=acva/test.jsonl --config.corpus=runs/corpus --workdir runs/compared

The stage of a model that was stopped goes on where it was.
"""

import dataclasses
from pathlib import Path
from urllib.parse import urlencode

from ml_collections import ConfigDict

from allam_jax import recipe_inputs
from allam_jax.data.documents import DATASET_FILE
from allam_jax.errors import UserError
from allam_jax.settings import setting
from configs import base
from configs.suites import arabic


class Inputs(arabic.Inputs):
    """Those of configs/suites/arabic.py, and several models in place of one."""

    models: str = setting("", "NAME=PATH,NAME=PATH: what is compared")
    corpus: str = setting("", "folder of datasets (workdir of task corpus) in which items are looked for; empty: none")


INPUTS = {"full": Inputs()}


def get_config(arg: str = "full") -> ConfigDict:
    _, given = recipe_inputs.read(INPUTS, arg)
    models = dict(entry.partition("=")[::2] for entry in given.models.split(",") if entry)
    if not models or not all(models.values()) or not all(name.isidentifier() for name in models):
        raise UserError(f"config.models = {given.models!r}: expected NAME=PATH,NAME=PATH; letters and digits in names")
    asked = {field.name: getattr(given, field.name) for field in dataclasses.fields(arabic.Inputs)}
    stages = {}
    for name, path in models.items():
        stages[f"suites_{name}"] = arabic.get_config("full?" + urlencode(asked | {"model": path}))
    report = base.get_config("suite_report")
    for name in models:
        report.suite_report.models[name] = f"@suites_{name}"
    if given.corpus:
        stages["contamination"] = _contamination(Path(given.corpus), next(iter(stages.values())))
        report.suite_report.contamination = "@contamination"
    return base.recipe(**stages, report=report)


def _contamination(corpus: Path, asked: ConfigDict) -> ConfigDict:
    config = base.get_config("contamination")
    for name, suite in asked.harness.suites.items():
        config.contamination.suites[name] = suite
    datasets = sorted(path.parent for path in corpus.glob(f"*/{DATASET_FILE}"))
    if not datasets:
        raise UserError(f"config.corpus = {corpus}: holds no datasets; give the workdir of task corpus")
    for directory in datasets:
        config.contamination.corpora[directory.name] = base.texts(path=str(directory))
    return config
