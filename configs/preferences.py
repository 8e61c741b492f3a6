"""Pairs for configs/dpo.py: ten answers of a model to every prompt, over a grid of temperatures and nucleus values.

python run.py --config configs/preferences.py --config.init.weights=DIR --config.preferences.input=FILES
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    """Needs init.weights and preferences.input."""
    return base.get_config("preferences")
