"""The Arabic suites on every checkpoint of a training run, and their curves over its steps.

    python run.py --config configs/suites/over_training.py --config.run=runs/mine --config.items=200 \
        --config.acva=acva/test.jsonl --workdir runs/mine_suites

A checkpoint is a stage, so what was stopped goes on. For later checkpoints remove the stage `curves` first.
"""

import dataclasses
from pathlib import Path
from urllib.parse import urlencode

from ml_collections import ConfigDict

from allam_jax import recipe_inputs
from allam_jax.errors import UserError
from allam_jax.settings import setting
from configs import base
from configs.suites import arabic


class Inputs(arabic.Inputs):
    """Those of configs/suites/arabic.py, and the run in place of a model."""

    run: str = setting("", "workdir of the training run")
    items: int = setting(200, "items of each suite, drawn by the seed; 0: all", least=0)


INPUTS = {"full": Inputs()}


def get_config(arg: str = "full") -> ConfigDict:
    _, given = recipe_inputs.read(INPUTS, arg)
    checkpoints = sorted(path for path in Path(given.run).glob("checkpoints/*") if path.name.isdigit())
    if not given.run or not checkpoints:
        raise UserError(f"config.run = {given.run!r}: holds no checkpoints; give the workdir of a training run")
    asked = {field.name: getattr(given, field.name) for field in dataclasses.fields(arabic.Inputs)}
    stages, curves = {}, base.get_config("suite_curves")
    curves.suite_curves.run = given.run
    for path in checkpoints:
        name = f"step_{int(path.name)}"
        stages[name] = arabic.get_config("full?" + urlencode(asked | {"model": str(path)}))
        stages[name].harness.permuted = False
        curves.suite_curves.stages[name] = f"@{name}"
    return base.recipe(**stages, curves=curves)
