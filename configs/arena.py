"""Votes of people on pairs of answers, at http://127.0.0.1:8001; results in the workdir when it ends.

pip install -r requirements-eval.txt
python run.py --config configs/arena.py --config.arena.pairs=pairs.jsonl --workdir runs/arena
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    """Needs arena.pairs."""
    return base.get_config("arena")
