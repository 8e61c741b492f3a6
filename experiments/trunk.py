"""The constant-rate run from which wsd_release branches and whose checkpoints merging merges, and branches of it."""

from typing import Any

from ml_collections import ConfigDict

from configs import base
from experiments.settings import Setting, continuing, replaced

TRUNK_STEPS = 300
DECAY_STEPS = 60
EVERY = 20  # steps between checkpoints; all are kept


def trunk() -> ConfigDict:
    """The laptop's trunk: training on English, Arabic and code at a constant rate, from the expanded base."""
    config = continuing(weights="@expand/weights", steps=TRUNK_STEPS)
    config.optimizer.rewarm_steps = 5
    config.data.sources = replaced({"en": 0.4, "ar": 0.35, "code": 0.25})
    config.eval.sources.code = base.mixture(path="@corpus/code", split="validation")
    config.checkpoint.update(every=EVERY, keep_every=EVERY)
    return config


def checkpoint(step: int) -> str:
    """The path of a step's checkpoint in the directory of a run."""
    return f"checkpoints/{step}"


def going_on(here: Setting, *, steps: int) -> dict[str, Any]:
    """Overrides of a branch that keeps the constant rate until step `steps`."""
    return {here.key("train.steps"): steps}


def decaying(
    here: Setting, *, start: int = TRUNK_STEPS, steps: int = DECAY_STEPS, shape: str = "one_minus_sqrt"
) -> dict[str, Any]:
    """Overrides of a branch that decays from the trunk's step `start` over `steps` steps."""
    return {
        here.key("init.weights"): f"@trunk/{checkpoint(start)}",
        here.key("train.steps"): start + steps,
        here.key("schedule.name"): "wsd",
        here.key("schedule.decay_start"): start,
        here.key("schedule.decay_steps"): steps,
        here.key("schedule.decay_shape"): shape,
        # An exponential never reaches 0.
        here.key("schedule.final_fraction"): 0.01 if shape == "exponential" else 0.0,
    }
