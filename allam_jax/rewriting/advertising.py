"""Advertising and menus inside a document, by rules: what a rewrite may leave out, and what cleaning removes."""

import itertools
import re

from allam_jax.corpus.tags import TAGS, Resources
from allam_jax.corpus.words import Words
from allam_jax.rewriting.document_pieces import sentences_of

_SPAM_SHARE = 0.25  # of the words of a sentence
_MENU = re.compile(r"[|·•»>]\s")
_MENU_SIGNS = 3


def is_advertising(sentence: str, *, language: str) -> bool:
    """Whether a sentence is advertising or a menu: a quarter of its words are contacts or sell something, or its words
    stand between signs as links of a page do."""
    if len(_MENU.findall(sentence)) >= _MENU_SIGNS:
        return True
    share = TAGS["word_spam_share"].compute(Words(sentence, language=language), Resources())
    return share is not None and share >= _SPAM_SHARE


def without_advertising(text: str, *, language: str) -> str:
    """The text without its sentences and lines of advertising."""
    return "".join(itertools.filterfalse(lambda one: is_advertising(one, language=language), sentences_of(text)))
