"""Continues prompts with any model: a weights directory, a Hugging Face directory, a run or one of its checkpoints.

    python run.py --config configs/generate.py --config.init.weights=runs/quickstart/export/orbax \
        --config.generate.prompts='("The Messenger of Allah said",)'

Decoding is greedy unless --config.generate.temperature is above 0. The quickstart's model takes seconds on two cores.
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    """Needs init.weights and generate.prompts."""
    return base.get_config("generate")
