"""Tags: numbers that describe a document, by name. Rules compare them with thresholds.

Names and definitions that begin with `ccnet_` and `rps_` are RedPajama-v2's (its repository, app/src/core/
quality_signals); values are rounded as there. The others are ours: `word_*` variants count on words that are right for
Arabic too (`Words.words`, `Words.tokens`), `gopher_*` and `fineweb_*` live in `repetition_tags.py`.

A tag is None where it is undefined (a share of no words); a rule never drops on None.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from allam_jax.corpus import repetition_tags, word_lists
from allam_jax.corpus.fasttext_classifier import QualityClassifier
from allam_jax.corpus.pii import PATTERNS
from allam_jax.corpus.words import Words
from allam_jax.errors import UserError

_PRECISION = 8  # decimals, as in RedPajama-v2
_ELLIPSES = ("...", "…")
_ASCII_LETTER = re.compile("[a-zA-Z]")
# One of these is a word of spam wherever it stands: an address, a handle, a hashtag, a telephone number.
_CONTACT = re.compile(rf"https?://\S+|www\.\S+|\S+@\S+\.\w+|(?<!\w)[@#]\w+|{PATTERNS['phone'].pattern}")
# What source code is strewn with and prose is not: brackets but round ones, operators, calls, attributes, ends of
# statements, comments. Parentheses and initials (s.a.w.) do not count: translators love them.
_CODE_MARK = re.compile(r'[{}\[\]=_<>\\]|(?<=\w)\(|[;:]$|^\s*[#@]|"""|\w\w\.(?=[a-z])', re.MULTILINE)
_VARIETIES = {"arz": "ar"}  # lid.176 tells Egyptian Arabic apart; a source that states `ar` means it too


@dataclasses.dataclass(frozen=True)
class Resources:
    """Files of the user's that some tags need, for one language; "" where there is none.

    Attributes:
      block_list: Blocked words and phrases, one a line.
      quality_model: Directory that the task quality_classifier wrote.
    """

    block_list: str = ""
    quality_model: str = ""

    @functools.cached_property
    def classifier(self) -> QualityClassifier:
        """The one in `quality_model`."""
        return QualityClassifier(self.quality_model)


@dataclasses.dataclass(frozen=True)
class Tag:
    """How a tag is computed.

    Attributes:
      compute: From the document's views and its language's resources.
      kind: `share` for values from 0 to 1, `count` for numbers without an upper end; for histograms.
    """

    compute: Callable[[Words, Resources], float | None]
    kind: Literal["share", "count"]


def compute(
    names: Sequence[str], words: Words, *, known: Mapping[str, float], resources: Resources
) -> dict[str, float | None]:
    """Values of the named tags: those in `known`, which the record brought along, and the rest computed."""
    return {name: known[name] if name in known else TAGS[name].compute(words, resources) for name in names}


def check_names(names: Sequence[str], *, key: str) -> None:
    """UserError for a name that is no tag."""
    for name in names:
        if name not in TAGS:
            raise UserError(f"config.{key}: no tag {name!r}; known: {', '.join(sorted(TAGS))}")


def _share(part: float, whole: float) -> float | None:
    return round(part / whole, _PRECISION) if whole else None


def _top_language_score(words: Words, _: Resources) -> float:
    """CCNet's score: the probability of the most probable language, 0 where that is not the source's.

    CCNet sorts documents into folders by that language: a document of another one would not be here at all.
    """
    (language, score), *_rest = words.languages.items()
    return round(score, 4) if _VARIETIES.get(language, language) == words.language else 0.0


def _language_score(words: Words, _: Resources) -> float:
    """Probability of the source's language, its varieties included."""
    scores = words.languages.items()
    return round(min(sum(score for name, score in scores if _VARIETIES.get(name, name) == words.language), 1.0), 4)


def _ellipsis_lines(words: Words, _: Resources) -> float | None:
    return _share(sum(line.rstrip().endswith(_ELLIPSES) for line in words.lines), len(words.lines))


def _no_ascii_letter(words: Words, _: Resources) -> float | None:
    if not words.raw_words:
        return None
    with_letter = sum(_ASCII_LETTER.search(word) is not None for word in words.raw_words)
    return round(1.0 - with_letter / len(words.raw_words), _PRECISION)


def _no_letter(words: Words, _: Resources) -> float | None:
    """Share of tokens without a letter of any script."""
    return _share(sum(not any(map(str.isalpha, token)) for token in words.tokens), len(words.tokens))


def _symbols(words: Words, _: Resources) -> float | None:
    return _share(sum(words.text.count(symbol) for symbol in ("#", *_ELLIPSES)), len(words.raw_words))


def _symbols_to_tokens(words: Words, _: Resources) -> float | None:
    return _share(sum(words.text.count(symbol) for symbol in ("#", *_ELLIPSES)), len(words.tokens))


def _lorem_ipsum(words: Words, _: Resources) -> float | None:
    return _share(words.norm_text.count("lorem ipsum"), len(words.norm_text)) or 0.0


def _stop_words(words: Words, _: Resources) -> float | None:
    if not words.norm_words:
        return 0.0
    known = word_lists.stop_words(words.language)
    return _share(sum(word in known for word in words.raw_words), len(words.raw_words))


def _bare_stop_words(words: Words, _: Resources) -> float | None:
    known = word_lists.bare_stop_words(words.language)
    return _share(sum(word in known for word in words.words), len(words.words))


def _blocked(words: Words, resources: Resources) -> float | None:
    """Number of n-grams of norm words in the block list, for the n that occur in the list."""
    if not resources.block_list:
        raise UserError(f"rule on blocked words: give config.corpus.block_lists.{words.language} a file, a word a line")
    blocked = word_lists.redpajama_block_list(resources.block_list)
    found = 0
    for n in {entry.count(" ") + 1 for entry in blocked}:
        grams = zip(*(words.norm_words[start:] for start in range(n)), strict=False)
        found += sum(" ".join(gram) in blocked for gram in grams)
    return float(found)


def _blocked_share(words: Words, resources: Resources) -> float | None:
    found = _blocked(words, resources)
    return None if found is None else _share(found, len(words.norm_words))


def _bare_blocked_share(words: Words, resources: Resources) -> float | None:
    """The same on words without vowel marks and Arabic punctuation, hamza where it stands."""
    if not resources.block_list:
        raise UserError(f"rule on blocked words: give config.corpus.block_lists.{words.language} a file, a word a line")
    blocked = word_lists.bare_block_list(resources.block_list)
    found = 0
    for n in {len(entry) for entry in blocked}:
        found += sum(gram in blocked for gram in zip(*(words.words[start:] for start in range(n)), strict=False))
    return _share(found, len(words.words))


def _spam(words: Words, _: Resources) -> float | None:
    """Share of white-space separated words that are addresses, handles, telephone numbers or words of advertising."""
    total = len(words.text.split())
    contacts = [match.group() for match in _CONTACT.finditer(words.text)]
    listed = word_lists.SPAM_WORDS["en"] | word_lists.SPAM_WORDS.get(words.language, frozenset())
    rest = words.words if not contacts else Words(_CONTACT.sub(" ", words.text), language=words.language).words
    spam = sum(word in listed for word in rest) + sum(len(contact.split()) for contact in contacts)
    return min(1.0, _share(spam, total) or 0.0) if total else None


def _code_marks(words: Words, _: Resources) -> float | None:
    """Marks of source code per character that is no space: above 0.025 for 97 % of Python's library in pieces of 2 kB
    (the rest are comments and docstrings), below for nearly all prose."""
    return _share(len(_CODE_MARK.findall(words.text)), len("".join(words.text.split())))


def _mean_word_length(words: Words, _: Resources) -> float | None:
    return _share(sum(map(len, words.words)), len(words.words))


def _quality(words: Words, resources: Resources) -> float | None:
    """Probability of the kind of text that the language's classifier was taught to be good."""
    if not resources.quality_model:
        raise UserError(
            f"rps_doc_ml_palm_score: a record does not bring it; give config.corpus.quality_models.{words.language} a "
            "directory that the task quality_classifier wrote"
        )
    return resources.classifier.score(words.text)


TAGS: dict[str, Tag] = {
    "ccnet_language_score": Tag(_top_language_score, "share"),
    "ccnet_length": Tag(lambda words, _: float(len(words.text)), "count"),
    "ccnet_nlines": Tag(lambda words, _: float(words.text.count("\n") + 1), "count"),
    "rps_doc_word_count": Tag(lambda words, _: float(len(words.norm_words)), "count"),
    "rps_doc_frac_lines_end_with_ellipsis": Tag(_ellipsis_lines, "share"),
    "rps_doc_frac_no_alph_words": Tag(_no_ascii_letter, "share"),
    "rps_doc_symbol_to_word_ratio": Tag(_symbols, "share"),
    "rps_doc_lorem_ipsum": Tag(_lorem_ipsum, "share"),
    "rps_doc_stop_word_fraction": Tag(_stop_words, "share"),
    "rps_doc_ldnoobw_words": Tag(_blocked, "count"),
    "rps_doc_ldnoobw_words_share": Tag(_blocked_share, "share"),
    "rps_doc_ml_palm_score": Tag(_quality, "share"),
    "language_score": Tag(_language_score, "share"),
    "word_count": Tag(lambda words, _: float(len(words.words)), "count"),
    "word_mean_length": Tag(_mean_word_length, "count"),
    "word_no_letter_share": Tag(_no_letter, "share"),
    "word_symbol_ratio": Tag(_symbols_to_tokens, "share"),
    "word_stop_share": Tag(_bare_stop_words, "share"),
    "word_blocked_share": Tag(_bare_blocked_share, "share"),
    "word_spam_share": Tag(_spam, "share"),
    "code_mark_share": Tag(_code_marks, "share"),
    **{name: Tag(function, kind) for name, (function, kind) in repetition_tags.TAGS.items()},
}
