"""Your own files become clean document shards: the first step of everything else.

    python run.py --config configs/corpus.py --config.texts='texts/*.jsonl.zst' --config.language=fa

`corpus/report.md` says what was read, dropped and repaired. Any key of the task corpus can follow, such as
`--config.corpus.sources.fa.remove="('tatweel',)"` for the language fa. docs/corpus.md has the file types.
"""

from ml_collections import ConfigDict

from allam_jax import recipe_inputs
from allam_jax.errors import UserError
from allam_jax.settings import Section, setting
from configs import base, corpus_rules


class Inputs(Section):
    """What is read."""

    texts: str = setting("", "files: one, a directory or a glob")
    language: str = setting("", "ISO 639 code of their language")
    validation_share: float = setting(0.02, "of the documents, held out", least=0, below=1)


INPUTS = {"full": Inputs()}


def get_config(arg: str = "full") -> ConfigDict:
    _, given = recipe_inputs.read(INPUTS, arg)
    return documents(given.texts, given.language, validation_share=given.validation_share)


def documents(texts: str, language: str, *, validation_share: float) -> ConfigDict:
    """The task corpus on a user's files, with mild rules; other configs begin with it."""
    for key, value in (("texts", texts), ("language", language)):
        if not value:
            raise UserError(f"config.{key} is empty: give --config.{key}={'FILES' if key == 'texts' else 'CODE'}")
    config = base.get_config("corpus")
    config.corpus.rules.text = corpus_rules.any_language(language)
    config.corpus.sources[language] = base.documents(
        path=texts, language=language, rules="text", repair=("mojibake",), validation_share=validation_share
    )
    config.corpus.dedup.text = True
    return config
