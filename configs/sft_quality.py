"""Checks conversations or pairs before a model is tuned on them.

python run.py --config configs/sft_quality.py --config.chat_quality.sources.arabic.path=FILES
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    """Needs chat_quality.sources.arabic.path; more sources make a config file of one's own."""
    config = base.get_config("sft_quality")
    config.chat_quality.sources.arabic = base.conversations(language="ar")
    return config
