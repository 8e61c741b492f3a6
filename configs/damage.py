"""Plants damage in clean documents, cleans them by rules, and compares both with the clean ones.

    python run.py --config configs/damage.py --config.input=runs/corpus/en --config.words_en=words_en.txt \
        --workdir runs/damage

A worker learns from damage/pairs.jsonl (configs/sft.py), and is compared in the same way.
"""

from pathlib import Path

from ml_collections import ConfigDict

from allam_jax import recipe_inputs
from allam_jax.errors import UserError
from allam_jax.settings import Section, setting
from configs import base

INSTRUCTION = str(Path(__file__).parent / "instructions" / "short.toml")


class Inputs(Section):
    """Clean documents, and words that are planted and removed."""

    input: str = setting("", "dataset of clean documents in Arabic or English, as the corpus task writes it")
    documents: int = setting(0, "documents at most; 0: all", least=0)
    words_ar: str = setting("", "block list of Arabic, a word or phrase a line; empty: no insults in Arabic")
    words_en: str = setting("", "the same in English")


INPUTS = {"full": Inputs()}


def get_config(arg: str = "full") -> ConfigDict:
    _, given = recipe_inputs.read(INPUTS, arg)
    if not given.input:
        raise UserError("config.input is empty: give --config.input=DATASET, such as runs/corpus/en")
    damage, rules, compared = map(base.get_config, ("damage", "rewrite", "compare_corpora"))
    damage.damage.update(input=given.input, documents=given.documents, name="documents", instruction=INSTRUCTION)
    rules.rewrite.update(input="@damage/documents", worker="rules")
    rules.rewrite.checks.names = ()
    compared.compare.damaged = "@damage"
    compared.compare.corpora.rules = "@rules/documents"
    for language, words in (("ar", given.words_ar), ("en", given.words_en)):
        if words:
            damage.damage.block_lists[language] = words
            rules.rewrite.block_lists[language] = words
            compared.compare.block_lists[language] = words
    return base.recipe(damage=damage, rules=rules, compared=compared)
