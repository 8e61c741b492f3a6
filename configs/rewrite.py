"""Rewrites the documents of a dataset with an alignment worker, every piece checked (docs/native_alignment.md).

    python run.py --config configs/rewrite.py --config.init.weights=WORKER --config.rewrite.input=runs/corpus/web
    python run.py --config configs/rewrite.py --config.rewrite.input=runs/corpus/web \
        --config.rewrite.endpoint.url=http://127.0.0.1:8000/v1 --config.rewrite.endpoint.model=NAME

`configs/rewrite.py:translate` translates them into Arabic instead: `--config.translate.input=...`. Either writes a
dataset that a mixture takes like any other. `configs/rewrite.py:plan` and `:plan_translate` say how many GPU hours
10B tokens take with a worker of 4B parameters (docs/planning.md). `configs/rewrite.py:join` joins the parts of several
machines.
"""

from pathlib import Path

from ml_collections import ConfigDict

from allam_jax.errors import UserError
from allam_jax.model.llama_config import preset
from configs import base

INSTRUCTIONS = Path(__file__).parent / "instructions"
_PLANS = {"plan": "rewrite", "plan_translate": "translate"}


def get_config(task: str = "rewrite") -> ConfigDict:
    """Tasks need the input, and init.weights or an endpoint; plans need nothing."""
    if task in _PLANS:
        return _plan(_PLANS[task])
    if task == "join":
        return base.get_config("join_rewrites")
    if task not in ("rewrite", "translate"):
        known = "translate, join, plan, plan_translate or no argument"
        raise UserError(f"--config configs/rewrite.py:{task}: expected {known}")
    config = base.get_config(task)
    config[task].instruction = str(INSTRUCTIONS / f"{task}.toml")
    return config


def _plan(planned: str) -> ConfigDict:
    config = base.get_config("plan_rewrite")
    config.model = base.model(preset("qwen3_4b"))
    config.rewrite_plan.update(gpu="h100", instruction=str(INSTRUCTIONS / f"{planned}.toml"))
    if planned == "translate":  # a sentence is a piece
        config.rewrite_plan.update(piece_tokens=30.0, capacity=1024)
    return config
