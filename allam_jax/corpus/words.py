"""Words and lines of a document: RedPajama-v2's definitions, and those that are right for Arabic.

RedPajama-v2 (app/src/core/document.py and utilities/text/normalization.py of its repository) counts on two lists of
words: *raw* words are the WordPunct tokens of NLTK 3.8, runs of word characters or of what is neither word
character nor space (NLTK 3.10 counts combining marks as word characters); *norm* words are split at white space
after ASCII punctuation is removed, letters are lower-cased and the text is decomposed (NFD). Both go wrong on
Arabic: a vowel mark is no word character, so a vowelled word is cut at each of its marks; «،؛؟» are not ASCII; NFD
takes the hamza off أ إ ؤ ئ. The Arabic words here are free of these faults.
"""

import functools
import re
import string
import unicodedata

from allam_jax.corpus.language_id import identify
from allam_jax.corpus.normalise import without_marks

_RAW_WORD = re.compile(r"\w+|[^\w\s]+")
_WHITE_SPACE = re.compile(r"\s+")
_LINE = re.compile(r"[^\n]*\n|[^\n]+$")
_NO_ASCII_PUNCTUATION = str.maketrans("", "", string.punctuation)

_WORD_CHARACTERS = re.compile(r"[^\W_]+")
_SENTENCE_END = re.compile(r"[.!?؟۔…]+")


def redpajama_normalise(text: str) -> str:
    """Without ASCII punctuation, lower-cased, white space squeezed to single spaces, NFD."""
    text = text.translate(_NO_ASCII_PUNCTUATION).lower().strip()
    return unicodedata.normalize("NFD", _WHITE_SPACE.sub(" ", text))


def bare_words(text: str) -> list[str]:
    """Runs of letters and digits, lower-cased, without vowel marks and tatweel: what deduplication compares."""
    return _bare_words(without_marks(text))


def _bare_words(unmarked: str) -> list[str]:
    return _WORD_CHARACTERS.findall(unmarked.lower())


class Words:
    """One document, with each of its views computed once, when first asked for.

    Attributes:
      text: The document's text.
      language: ISO 639-1 code that its source states.
    """

    def __init__(self, text: str, *, language: str):
        self.text = text
        self.language = language

    @functools.cached_property
    def raw_words(self) -> list[str]:
        """RedPajama-v2's raw words."""
        return _RAW_WORD.findall(self.text)

    @functools.cached_property
    def norm_text(self) -> str:
        """RedPajama-v2's normalised text."""
        return redpajama_normalise(self.text)

    @functools.cached_property
    def norm_words(self) -> list[str]:
        """RedPajama-v2's normalised words."""
        return self.norm_text.split()

    @functools.cached_property
    def lines(self) -> list[str]:
        """RedPajama-v2's lines, each with its newline; a last empty one does not count."""
        return _LINE.findall(self.text)

    @functools.cached_property
    def unmarked(self) -> str:
        """The text without vowel marks and tatweel."""
        return without_marks(self.text)

    @functools.cached_property
    def tokens(self) -> list[str]:
        """WordPunct tokens of the text without vowel marks: words stay whole in any language."""
        return _RAW_WORD.findall(self.unmarked)

    @functools.cached_property
    def words(self) -> list[str]:
        """`bare_words` of the text."""
        return _bare_words(self.unmarked)

    @functools.cached_property
    def languages(self) -> dict[str, float]:
        """`identify` of the text."""
        return identify(self.unmarked)

    @functools.cached_property
    def filled_lines(self) -> list[str]:
        """Lines with something on them, without the white space around it."""
        return [line.strip() for line in self.text.split("\n") if line.strip()]


def ends_sentence(line: str) -> bool:
    """Whether a line (without trailing white space) ends in a full stop, question or exclamation mark, any quotes
    and brackets after it aside."""
    return _SENTENCE_END.search(line.rstrip("\"'”’»)]}")[-1:]) is not None
