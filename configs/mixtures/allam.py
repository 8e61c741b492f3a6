"""The data mixture of ALLaM, and what it comes to for a budget of tokens.

    python run.py --config configs/mixtures/allam.py                       # Table 1 of the paper, 1.2T tokens
    python run.py --config configs/mixtures/allam.py:english               # English from scratch (talk), 4T tokens
    python run.py --config configs/mixtures/allam.py --config.tokenizer=DIR --config.data.sources.english_web.path=DIR
    python run.py --config configs/mixtures/allam.py --config.data.sources.arabic_wiki.tokens=400_000_000

It prints tokens, share and epochs of each source. Sizes come from document shards (counted with the tokenizer), from
token caches, or as numbers; of sources without any the epochs stay open. A training config takes the sources as they
are: `config.data.sources = allam.sources(allam.MIXED, root="corpus")`.

Each column of Table 1 adds up to 100 %, and the languages to 100 %. A source's share is the product of the two; columns
are divided by their sum, so that shares add up to 1 whatever is edited. The paper's "overall" column is these products,
rounded, but for math (2.75 %, printed 2.5 %) and other (0.38 %, printed 0.2 %).
"""

from collections.abc import Mapping

from ml_collections import ConfigDict

from allam_jax.errors import UserError
from configs import base

# Percent of each language's tokens (paper, Table 1), its share of the run, and what it is.
LANGUAGES = {
    "english": (55.0, {"language": "en", "origin": "natural"}),
    "arabic": (22.5, {"language": "ar", "origin": "natural"}),
    "translated": (22.5, {"language": "ar", "origin": "translated"}),
}
MIXED = {
    "english": {"web": 31, "books": 9, "science": 16, "code": 39, "math": 5},
    "arabic": {"web": 71, "books": 13, "wiki": 0.70, "news": 14, "other": 1.3},
    "translated": {"web": 65, "books": 12, "wiki": 0.61, "science": 22, "other": 0.39},
}
# The first phase of the model from scratch (talk, "English only").
ENGLISH = {"english": {"web": 71, "books": 3, "wiki": 0.1, "science": 6, "code": 17, "math": 0.9, "other": 2}}

TOKENS = {"mixed": 1_200_000_000_000, "english": 4_000_000_000_000}


def sources(table: Mapping[str, Mapping[str, float]], *, root: str = "") -> ConfigDict:
    """`data.sources` of a table: LANGUAGE_DOMAIN for each cell, its dataset (or tokens) at `root`/LANGUAGE_DOMAIN."""
    entries = ConfigDict()
    languages = sum(LANGUAGES[language][0] for language in table)
    for language, column in table.items():
        share, labels = LANGUAGES[language]
        for domain, percent in column.items():
            name = f"{language}_{domain}"
            weight = share / languages * percent / sum(column.values())
            entries[name] = base.mixture(path=f"{root}/{name}" if root else "", weight=weight, domain=domain, **labels)
    return entries


def get_config(which: str = "mixed") -> ConfigDict:
    if which not in TOKENS:
        raise UserError(f"--config configs/mixtures/allam.py:{which}: expected {' or '.join(TOKENS)}")
    table = {"mixed": MIXED, "english": ENGLISH}[which]
    config = base.get_config("mixture")
    config.data.sources = sources(table)
    config.data.update(seq_len=4096, batch_size=1024)
    config.mixture.update(tokens=TOKENS[which], sum_of_weights=1.0)
    return config
