"""Checks a workdir, export, weights directory, tokenizer or dataset, and everything below it:
`python run.py --config configs/verify.py --workdir runs/verify --config.verify.path runs/X`."""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    return base.get_config("verify")
