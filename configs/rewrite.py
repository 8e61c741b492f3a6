"""Rewrites the documents of a dataset with an alignment worker, every piece checked (docs/native_alignment.md).

    python run.py --config configs/rewrite.py --config.init.weights=WORKER --config.rewrite.input=runs/corpus/web
    python run.py --config configs/rewrite.py --config.rewrite.input=runs/corpus/web \
        --config.rewrite.endpoint.url=http://127.0.0.1:8000/v1 --config.rewrite.endpoint.model=NAME

`configs/rewrite.py:translate` translates them into Arabic instead: `--config.translate.input=...`. Either writes a
dataset that a mixture takes like any other.
"""

from pathlib import Path

from ml_collections import ConfigDict

from allam_jax.errors import UserError
from configs import base

INSTRUCTIONS = Path(__file__).parent / "instructions"


def get_config(task: str = "rewrite") -> ConfigDict:
    """Needs the input, and init.weights or an endpoint."""
    if task not in ("rewrite", "translate"):
        raise UserError(f"--config configs/rewrite.py:{task}: expected translate, or no argument")
    config = base.get_config(task)
    config[task].instruction = str(INSTRUCTIONS / f"{task}.toml")
    return config
