"""A config that an earlier run has written: `--config configs/saved.py:runs/quickstart/base/config.json`.

How a sweep starts its runs; also a way to repeat any run elsewhere, or with another value:

    python run.py --config configs/saved.py:runs/embedding_init/runs/random--seed-0/recipe.json --workdir runs/again
"""

from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from allam_jax.files import read_json


def get_config(path: str) -> ConfigDict:
    """`path`: a config.json of a run, or the recipe.json of a run of a sweep."""
    return ConfigDict(_tuples(read_json(Path(path), kind=dict)))


def _tuples(value: Any) -> Any:
    """JSON has lists only, configs have tuples only."""
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
