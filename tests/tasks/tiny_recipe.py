"""A recipe of seconds, from ROOT/text/*.txt to export: `--config tests/tasks/tiny_recipe.py:ROOT`."""

from ml_collections import ConfigDict

from configs import base
from tests.tasks import tiny


def get_config(root: str) -> ConfigDict:
    corpus = base.get_config("corpus")
    for language in ("en", "ar"):
        corpus.corpus.sources[language] = base.documents(
            path=f"{root}/text/{language}.txt", language=language, validation_share=0.05
        )

    tokenizer = base.get_config("tokenizer")
    tokenizer.tokenizer_training.sources.en = base.texts(path="@corpus/en")
    tokenizer.tokenizer_training.sources.ar = base.texts(path="@corpus/ar")
    tokenizer.tokenizer_training.vocab_size = 384

    train = tiny.get_config("@corpus")
    train.tokenizer = "@tokenizer"
    train.data.sources.en.path = train.eval.sources.en.path = "@corpus/en"
    train.data.sources.ar.path = "@corpus/ar"

    export = base.get_config("export")
    export.init.weights = "@train"
    return base.recipe(corpus=corpus, tokenizer=tokenizer, train=train, export=export)
