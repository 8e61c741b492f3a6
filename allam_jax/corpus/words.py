"""Words and lines of a document: by RedPajama-v2's definitions, and by the Unicode Standard's for every script.

RedPajama-v2 (app/src/core/document.py and utilities/text/normalization.py in its repository) counts two lists of words.
*Raw* words are the WordPunct tokens of NLTK 3.8: runs of word characters, or runs of characters that are neither word
characters nor spaces (NLTK 3.10 counts combining marks as word characters). *Norm* words are split at white space,
after ASCII punctuation is removed, letters are lower-cased and the text is decomposed (NFD).

Both are wrong for Arabic: a vowel mark is not a word character, so a vowelled word is cut at each mark; «،؛؟» are not
ASCII; NFD separates the hamza from أ إ ؤ ئ. They are wrong for every script with vowel signs, and for those without
spaces. The words of `Words.words` and `Words.tokens` have none of these faults (`word_boundaries.py`).
"""

import functools
import re
import string

from allam_jax.corpus.language_id import identify
from allam_jax.corpus.normalise import to_form, without_marks
from allam_jax.corpus.word_boundaries import find_tokens, find_words

_RAW_WORD = re.compile(r"\w+|[^\w\s]+")
_WHITE_SPACE = re.compile(r"\s+")
_LINE = re.compile(r"[^\n]*\n|[^\n]+$")
_NO_ASCII_PUNCTUATION = str.maketrans("", "", string.punctuation)

_SENTENCE_END = re.compile(r"[.!?؟۔…]+")


def redpajama_normalise(text: str) -> str:
    """The text without ASCII punctuation, in lower case, with single spaces, in NFD."""
    text = text.translate(_NO_ASCII_PUNCTUATION).lower().strip()
    return to_form("NFD", _WHITE_SPACE.sub(" ", text))


def bare_words(text: str) -> list[str]:
    """The text's words in lower case, without Arabic vowel marks and tatweel, and with straight apostrophes."""
    return _bare_words(without_marks(text))


def _bare_words(unmarked: str) -> list[str]:
    return find_words(unmarked.lower().replace("’", "'"))


class Words:
    """One document, with views that are each computed once, on first use.

    Attributes:
        text: the document's text.
        language: ISO 639-1 code that the document's source states.
    """

    def __init__(self, text: str, *, language: str):
        self.text = text
        self.language = language

    @functools.cached_property
    def raw_words(self) -> list[str]:
        """RedPajama-v2's raw words: WordPunct tokens of the text."""
        return _RAW_WORD.findall(self.text)

    @functools.cached_property
    def norm_text(self) -> str:
        """RedPajama-v2's normalised text, from `redpajama_normalise`."""
        return redpajama_normalise(self.text)

    @functools.cached_property
    def norm_words(self) -> list[str]:
        """RedPajama-v2's norm words: the normalised text, split at white space."""
        return self.norm_text.split()

    @functools.cached_property
    def lines(self) -> list[str]:
        """RedPajama-v2's lines, each with its newline. An empty last line does not count."""
        return _LINE.findall(self.text)

    @functools.cached_property
    def unmarked(self) -> str:
        """The text without vowel marks and tatweel."""
        return without_marks(self.text)

    @functools.cached_property
    def tokens(self) -> list[str]:
        """Words of the text without Arabic vowel marks, and the runs of punctuation and symbols between them."""
        return find_tokens(self.unmarked)

    @functools.cached_property
    def words(self) -> list[str]:
        """The text's `bare_words`."""
        return _bare_words(self.unmarked)

    @functools.cached_property
    def languages(self) -> dict[str, float]:
        """Probabilities of the text's languages, from `identify`."""
        return identify(self.unmarked)


def ends_sentence(line: str) -> bool:
    """Whether a line without trailing white space ends in a sentence mark, before any closing quotes and brackets."""
    return _SENTENCE_END.search(line.rstrip("\"'”’»)]}")[-1:]) is not None
