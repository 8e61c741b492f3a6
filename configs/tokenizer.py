"""A tokenizer of your own files.

python run.py --config configs/tokenizer.py --config.texts='texts/*.txt' --config.language=sw --config.pieces=8000
"""

from ml_collections import ConfigDict

from allam_jax import recipe_inputs
from allam_jax.settings import Section, setting
from configs import base, corpus


class Inputs(Section):
    """What the tokenizer is made of."""

    texts: str = setting("", "files: one, a directory or a glob")
    language: str = setting("", "ISO 639 code of their language")
    pieces: int = setting(16_000, "size of the vocabulary", least=1)
    validation_share: float = setting(0.02, "of the documents, held out", least=0, below=1)


INPUTS = {"full": Inputs()}


def get_config(arg: str = "full") -> ConfigDict:
    _, given = recipe_inputs.read(INPUTS, arg)
    documents = corpus.documents(given.texts, given.language, validation_share=given.validation_share)
    config = base.get_config("tokenizer")
    config.tokenizer_training.sources[given.language] = base.texts(path=f"@corpus/{given.language}")
    config.tokenizer_training.vocab_size = given.pieces
    return base.recipe(corpus=documents, tokenizer=config)
