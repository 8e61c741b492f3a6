"""Tags: named numbers that describe a document. Rules compare them with thresholds.

Tags whose names begin with `ccnet_` or `rps_` are defined, and rounded, as in RedPajama-v2
(app/src/core/quality_signals in its repository). The `word_*` tags are ours; they count words that are right for Arabic
too (`Words.words`, `Words.tokens`). `gopher_*` and `fineweb_*` are in `repetition_tags.py`.

A tag is None where it is undefined, such as a share of no words. A rule never drops a document for None.
"""

import dataclasses
import functools
import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from allam_jax.corpus import repetition_tags, word_lists
from allam_jax.corpus.fasttext_classifier import QualityClassifier
from allam_jax.corpus.language_id import LANGUAGES, whole_language
from allam_jax.corpus.pii import PATTERNS, is_phone
from allam_jax.corpus.words import Words
from allam_jax.errors import UserError

_PRECISION = 8  # decimals, as in RedPajama-v2
_ELLIPSES = ("...", "…")
_ASCII_LETTER = re.compile("[a-zA-Z]")
# These count as words of spam in any text: an address, a handle, a hashtag, a telephone number. The address of e-mail
# is \S+@\S+\.\w+, written so that the time is linear in the length of a word.
_EMAIL = r"(?<!\S)\S[^\s@]*+@\S(?:(?:[^\s.]|\.(?!\w))*+\.\w++)++"
_CONTACT = re.compile(rf"https?://\S+|www\.\S+|{_EMAIL}|(?<!\w)[@#]\w+|{PATTERNS['phone'].pattern}")
# Marks that are frequent in source code and rare in prose: square and curly brackets, operators, calls, attributes,
# ends of statements, comments. Parentheses in prose and initials (s.a.w.) do not count: translations have many.
_CODE_MARK = re.compile(r'[{}\[\]=_<>\\]|(?<=\w)\(|[;:]$|^[^\S\n]*+[#@]|"""|\w\w\.(?=[a-z])', re.MULTILINE)


@dataclasses.dataclass(frozen=True)
class Resources:
    """The user's files that some tags need, for one language; empty where there is none.

    Attributes:
        block_list: file of blocked words and phrases, one on each line.
        quality_model: directory that the task quality_classifier wrote.
    """

    block_list: str = ""
    quality_model: str = ""

    @functools.cached_property
    def classifier(self) -> QualityClassifier:
        """The classifier in `quality_model`, loaded once."""
        return QualityClassifier(self.quality_model)


@dataclasses.dataclass(frozen=True)
class Tag:
    """How a tag is computed.

    Attributes:
        compute: takes the document's words and the resources of its language.
        kind: `share` for values from 0 to 1, `count` for numbers without an upper bound; selects the histogram's bins.
    """

    compute: Callable[[Words, Resources], float | None]
    kind: Literal["share", "count"]


def compute(
    names: Sequence[str], words: Words, *, known: Mapping[str, float], resources: Resources
) -> dict[str, float | None]:
    """Values of the named tags. A value in `known`, which the record brought, is used; the others are computed."""
    return {name: known[name] if name in known else TAGS[name].compute(words, resources) for name in names}


def check_names(names: Sequence[str], *, key: str) -> None:
    """Raises UserError for a name that is not a tag's."""
    for name in names:
        if name not in TAGS:
            raise UserError(f"config.{key}: no tag {name!r}; known: {', '.join(sorted(TAGS))}")


def _share(part: float, whole: float) -> float | None:
    return round(part / whole, _PRECISION) if whole else None


def _top_language_score(words: Words, _: Resources) -> float | None:
    """CCNet's score: the probability of the most probable language, or 0 if that is not the source's language.

    CCNet sorts documents by that language, so it has no documents of another language.
    """
    if words.language not in LANGUAGES:
        return None
    (language, score), *_rest = words.languages.items()
    return round(score, 4) if whole_language(language) == words.language else 0.0


def _language_score(words: Words, _: Resources) -> float | None:
    """Probability of the source's language, including its varieties."""
    if words.language not in LANGUAGES:
        return None
    scores = words.languages.items()
    return round(min(sum(score for name, score in scores if whole_language(name) == words.language), 1.0), 4)


def _ellipsis_lines(words: Words, _: Resources) -> float | None:
    return _share(sum(line.rstrip().endswith(_ELLIPSES) for line in words.lines), len(words.lines))


def _no_ascii_letter(words: Words, _: Resources) -> float | None:
    if not words.raw_words:
        return None
    with_letter = sum(_ASCII_LETTER.search(word) is not None for word in words.raw_words)
    return round(1.0 - with_letter / len(words.raw_words), _PRECISION)


def _no_letter(words: Words, _: Resources) -> float | None:
    """Share of tokens without a letter of any script."""
    others = itertools.filterfalse(str.isalpha, words.tokens)  # few, so that most tokens cost one call of C
    return _share(sum(not any(map(str.isalpha, token)) for token in others), len(words.tokens))


def _symbols(words: Words, of: Sequence[str]) -> float | None:
    return _share(sum(words.text.count(symbol) for symbol in ("#", *_ELLIPSES)), len(of))


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


def _block_list(words: Words, resources: Resources) -> str:
    if not resources.block_list:
        raise UserError(
            f"a rule on blocked words needs config.corpus.block_lists.{words.language}: a file with one word on a line"
        )
    return resources.block_list


def _blocked(words: Words, resources: Resources) -> float:
    """Number of n-grams of norm words in the block list, for each n that occurs in the list."""
    return float(_listed(words.norm_words, word_lists.redpajama_block_list(_block_list(words, resources))))


def _listed(words: Sequence[str], listed: frozenset[tuple[str, ...]]) -> int:
    return sum(gram in listed for n in set(map(len, listed)) for gram in repetition_tags.grams(words, n))


def _blocked_share(words: Words, resources: Resources) -> float | None:
    return _share(_blocked(words, resources), len(words.norm_words))


def _bare_blocked_share(words: Words, resources: Resources) -> float | None:
    """Like `_blocked_share`, on words without vowel marks and Arabic punctuation, and with their hamza."""
    blocked = word_lists.bare_block_list(_block_list(words, resources))
    return _share(_listed(words.words, blocked), len(words.words))


def _spam(words: Words, _: Resources) -> float | None:
    """Share of words (between white space) that are addresses, handles, telephone numbers or words of advertising."""
    total = len(words.text.split())
    found = [match for match in _CONTACT.finditer(words.text) if match["phone"] is None or is_phone(match)]
    listed = word_lists.SPAM_WORDS["en"] | word_lists.SPAM_WORDS.get(words.language, frozenset())
    starts, ends = [match.start() for match in found], [0, *(match.end() for match in found)]
    others = " ".join(words.text[end:start] for end, start in zip(ends, [*starts, None], strict=True))
    rest = Words(others, language=words.language).words if found else words.words
    spam = sum(word in listed for word in rest) + sum(len(match[0].split()) for match in found)
    return min(1.0, _share(spam, total) or 0.0) if total else None


def _code_marks(words: Words, _: Resources) -> float | None:
    """Marks of source code for each character that is not a space.

    The value is above 0.025 for 97 % of Python's library in pieces of 2 kB (the rest are comments and docstrings), and
    below for nearly all prose.
    """
    return _share(len(_CODE_MARK.findall(words.text)), len("".join(words.text.split())))


def _mean_word_length(words: Words, _: Resources) -> float | None:
    return _share(sum(map(len, words.words)), len(words.words))


def _quality(words: Words, resources: Resources) -> float | None:
    """Probability that the text is of the kind that the language's classifier was taught as good."""
    if not resources.quality_model:
        raise UserError(
            f"rps_doc_ml_palm_score: a record has no such field; set config.corpus.quality_models.{words.language} to "
            "a directory that the task quality_classifier wrote"
        )
    return resources.classifier.score(words.text)


LANGUAGE_TAGS = ("ccnet_language_score", "language_score")
TAGS: dict[str, Tag] = {
    "ccnet_language_score": Tag(_top_language_score, "share"),
    "ccnet_length": Tag(lambda words, _: float(len(words.text)), "count"),
    "ccnet_nlines": Tag(lambda words, _: float(words.text.count("\n") + 1), "count"),
    "rps_doc_word_count": Tag(lambda words, _: float(len(words.norm_words)), "count"),
    "rps_doc_frac_lines_end_with_ellipsis": Tag(_ellipsis_lines, "share"),
    "rps_doc_frac_no_alph_words": Tag(_no_ascii_letter, "share"),
    "rps_doc_symbol_to_word_ratio": Tag(lambda words, _: _symbols(words, words.raw_words), "share"),
    "rps_doc_lorem_ipsum": Tag(_lorem_ipsum, "share"),
    "rps_doc_stop_word_fraction": Tag(_stop_words, "share"),
    "rps_doc_ldnoobw_words": Tag(_blocked, "count"),
    "rps_doc_ldnoobw_words_share": Tag(_blocked_share, "share"),
    "rps_doc_ml_palm_score": Tag(_quality, "share"),
    "language_score": Tag(_language_score, "share"),
    "word_count": Tag(lambda words, _: float(len(words.words)), "count"),
    "word_mean_length": Tag(_mean_word_length, "count"),
    "word_no_letter_share": Tag(_no_letter, "share"),
    "word_symbol_ratio": Tag(lambda words, _: _symbols(words, words.tokens), "share"),
    "word_stop_share": Tag(_bare_stop_words, "share"),
    "word_blocked_share": Tag(_bare_blocked_share, "share"),
    "word_spam_share": Tag(_spam, "share"),
    "code_mark_share": Tag(_code_marks, "share"),
    **{name: Tag(function, kind) for name, (function, kind) in repetition_tags.TAGS.items()},
}
