"""Numbers and properties of texts of conversations and answers."""

import itertools
import re
from collections.abc import Sequence

from allam_jax.corpus.language_id import identify, whole_language
from allam_jax.corpus.normalise import without_marks
from allam_jax.corpus.words import ends_sentence

_LEAST_LETTERS, _SURE = 12, 0.5  # fewer letters, or a smaller probability, say nothing about the language
_WINDOW = 50  # words

_ENGLISH_REQUESTS = """what who whom whose when where why how which is are was were do does did can could would will
should please write explain translate list summarize summarise compare describe give name tell find define mention"""
_ARABIC_REQUESTS = """ما ماذا متى أين كيف لماذا هل كم أي اذكر اكتب اشرح ترجم لخص قارن صف عدد حلل أعط أعطني أجب حدد عرف
وضح"""
_REQUESTS = frozenset(f"{_ENGLISH_REQUESTS} {_ARABIC_REQUESTS}".split())
_OTHER_LANGUAGE = re.compile(
    r"\btranslat|\bin (?:english|arabic|french|spanish|german)\b|ترجم|بال(?:عربية|إنجليزية|انجليزية|فرنسية)|(?:إلى|الى|"
    r"باللغة) ?ال(?:لغة ال)?(?:عربية|إنجليزية|انجليزية|فرنسية)|english|arabic",
    re.IGNORECASE,
)
_RUN = re.compile(r"(\S)\1{19}|(\S{2,20}?)\2{9}")
_LIST_OR_CODE = re.compile(r"^\s*(?:[-*•|]|\d+[.)-])|[`|{}<>=]\s*$|https?://\S+$")
_MIXED_WORD = re.compile(r"[\u0621-\u064a]{2}[A-Za-z]{3}|[A-Za-z]{3}[\u0621-\u064a]{2}")
_ARABIC_LETTER = re.compile(r"[\u0621-\u064a]")
_LATIN_MARK, _ARABIC_MARK = re.compile(r"(?<=[\u0621-\u064a])[,;?](?=\s|$)"), re.compile("[،؛؟]")


def repeated_share(words: Sequence[str], *, n: int = 4) -> float:
    """The share of n-grams that repeat an earlier one: 1 - distinct / all; 0 for a text that has none."""
    grams = list(zip(*(words[start:] for start in range(n)), strict=False))
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def lexical_diversity(words: Sequence[str]) -> float | None:
    """The mean share of distinct words in windows of 50 words (Covington and McFall 2010); None for fewer words."""
    windows = [words[start : start + _WINDOW] for start in range(0, len(words) - _WINDOW + 1, _WINDOW)]
    return sum(len(set(window)) for window in windows) / (_WINDOW * len(windows)) if windows else None


def differ_in_language(one: str, other: str) -> bool:
    """Whether two texts are in different languages: their labels differ, and both are right with probability 1/2.

    A name makes a short English sentence Finnish with 0.6; beside an English one of 0.8 that says nothing.
    """
    (language, probability), (other_language, other_probability) = map(_identified, (one, other))
    return language != other_language and probability * other_probability >= _SURE


def _identified(text: str) -> tuple[str, float]:
    """The likeliest language of a text and its probability, which is 0 for a text of few letters."""
    unmarked = without_marks(text)
    if sum(map(str.isalpha, unmarked)) < _LEAST_LETTERS:
        return "", 0.0
    ((language, probability),) = identify(unmarked, count=1).items()
    return whole_language(language), probability


def asks_for_another_language(text: str) -> bool:
    """Whether a request names a language or asks for a translation: its answer may be in another one."""
    return _OTHER_LANGUAGE.search(text) is not None


def is_request(text: str) -> bool:
    """Whether a text looks like a question or an instruction."""
    first = re.match(r"\W*(\w+)", without_marks(text))
    end = itertools.takewhile(lambda character: not (character.isalnum() or character == "_"), reversed(text))
    return any(character in "?؟" for character in end) or (first is not None and first[1].lower() in _REQUESTS)


def has_endless_run(text: str) -> bool:
    """Whether a character stands 20 times, or a short string 10 times, without a pause."""
    return _RUN.search(text) is not None


def ends_as_prose(text: str) -> bool | None:
    """Whether a text ends with the end of a sentence; None for lists, code and addresses, which need none."""
    last = text.rstrip().rpartition("\n")[2]
    return None if _LIST_OR_CODE.search(last) else ends_sentence(last)


def smells_translated(text: str) -> bool:
    """Whether an Arabic text has the marks of machine translation: Latin punctuation only, or words of two scripts."""
    if not _ARABIC_LETTER.search(text):
        return False
    return bool(_MIXED_WORD.search(text)) or (len(_LATIN_MARK.findall(text)) >= 2 and not _ARABIC_MARK.search(text))
