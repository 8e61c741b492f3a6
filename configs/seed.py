"""The seed of an alignment worker: documents for annotation, and the annotated pairs that it is trained on.

    python run.py --config configs/seed.py --config.datasets=runs/corpus/web,runs/corpus/books --workdir runs/seed
    python run.py --config configs/seed.py:pairs --config.seed_pairs.input=runs/review/clean.jsonl --workdir runs/pairs

Between them an expert model rewrites the documents (configs/rewrite.py) and people review what it wrote
(configs/review.py); docs/native_alignment.md has all commands.
"""

from ml_collections import ConfigDict

from allam_jax import recipe_inputs
from allam_jax.settings import Section, setting
from configs import base
from configs.rewrite import INSTRUCTIONS


class Inputs(Section):
    """What the pool is drawn from."""

    datasets: str = setting("", "deduplicated datasets, as the corpus task writes them, separated by commas")


INPUTS = {"pool": Inputs(), "pairs": Inputs()}


def get_config(arg: str = "pool") -> ConfigDict:
    """The pool needs datasets, the pairs seed_pairs.input."""
    kind, given = recipe_inputs.read(INPUTS, arg)
    if kind == "pairs":
        config = base.get_config("seed_pairs")
        config.seed_pairs.instruction = str(INSTRUCTIONS / "rewrite.toml")
        return config
    config = base.get_config("seed")
    for number, path in enumerate(filter(None, given.datasets.split(","))):
        config.seed_pool.inputs[f"dataset_{number}"] = path
    return config
