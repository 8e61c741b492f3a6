"""Talks with a model in the terminal. The model needs a chat template: its tokenizer's, or --config.chat.template.

python run.py --config configs/chat.py --config.init.weights=runs/quickstart/export/orbax
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    """Needs init.weights."""
    return base.get_config("chat")
