"""Compares a corpus with what was made of it, document by document (docs/native_alignment.md).

    python run.py --config configs/compare_corpora.py --config.before=runs/corpus/web \
        --config.after=runs/aligned/web,runs/rules/web --workdir runs/compared

`--config.init.weights=MODEL` adds perplexities, `--config.compare.rubric.endpoint.url=URL` grades by a judge, and
`--config.compare.moderation.endpoint.url=URL` a table of toxicity.
"""

from ml_collections import ConfigDict

from allam_jax import recipe_inputs
from allam_jax.settings import Section, setting
from configs import base
from configs.rewrite import INSTRUCTIONS


class Inputs(Section):
    """Datasets, as the corpus task and task rewrite write them."""

    before: str = setting("", "the original dataset")
    after: str = setting("", "datasets that were made of it, separated by commas")
    words_ar: str = setting("", "block list of Arabic, a word or phrase a line; empty: none")
    words_en: str = setting("", "the same of English")


INPUTS = {"datasets": Inputs()}


def get_config(arg: str = "datasets") -> ConfigDict:
    """Needs before and after."""
    _, given = recipe_inputs.read(INPUTS, arg)
    config = base.get_config("compare_corpora")
    config.compare.before = given.before
    config.compare.rubric.instruction = str(INSTRUCTIONS / "rubric.toml")
    paths = list(filter(None, given.after.split(",")))
    for number, path in enumerate(paths, start=1):
        config.compare.corpora["after" if len(paths) == 1 else f"after_{number}"] = path
    for language, words in (("ar", given.words_ar), ("en", given.words_en)):
        if words:
            config.compare.block_lists[language] = words
    return config
