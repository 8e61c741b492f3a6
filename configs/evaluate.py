"""Bits per byte of a model on your own files.

python run.py --config configs/evaluate.py --config.model=DIR --config.texts='held_out/*.txt' --config.language=fa
"""

from ml_collections import ConfigDict

from allam_jax import recipe_inputs
from allam_jax.errors import UserError
from allam_jax.settings import Section, setting
from configs import base, corpus


class Inputs(Section):
    """What is evaluated on what."""

    model: str = setting("", "Hugging Face directory, weights directory or run")
    texts: str = setting("", "files: one, a directory or a glob")
    language: str = setting("", "ISO 639 code of their language")


INPUTS = {"full": Inputs()}


def get_config(arg: str = "full") -> ConfigDict:
    _, given = recipe_inputs.read(INPUTS, arg)
    if not given.model:
        raise UserError("config.model is empty: give --config.model=DIR")
    config = base.get_config("evaluate")
    config.init.weights = given.model
    config.eval.sources[given.language] = base.mixture(path=f"@corpus/{given.language}", split="train")
    documents = corpus.documents(given.texts, given.language, validation_share=0.0)
    return base.recipe(corpus=documents, evaluation=config)
