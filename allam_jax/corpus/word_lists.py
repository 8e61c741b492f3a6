"""Lists of words that tags count: stop words, blocked words, words of advertising."""

import functools
import json
from pathlib import Path

from allam_jax.corpus import catalog
from allam_jax.corpus.words import bare_words, redpajama_normalise
from allam_jax.errors import UserError
from allam_jax.files import parse_json

# Words that advertising and search-engine spam repeat, in the form of `bare_words`. An honest text may use some of them
# too; they count only as a share of all its words.
_SPAM_ARABIC = """
    اشتر اشتري اطلب للطلب واتساب واتس خصم خصومات تخفيضات عروض عرض كوبون مجانا مجاني اتصل للتواصل تواصل
    اضغط سعر اسعار أسعار أرخص ارخص التوصيل توصيل شحن الشحن متجر متجرنا رابط الرابط هنا تحميل حمل سجل
    اشترك الآن الان مضمون ربح اربح كازينو رهان مراهنات قروض قرض تسوق بيع للبيع
"""
_SPAM_ENGLISH = """
    buy cheap discount discounts coupon promo sale offer offers deal deals free shipping price prices click subscribe
    whatsapp casino betting viagra pills loan loans winner win earn cash order now seo backlinks download
"""
SPAM_WORDS = {"ar": frozenset(_SPAM_ARABIC.split()), "en": frozenset(_SPAM_ENGLISH.split())}


@functools.cache
def stop_words(language: str) -> frozenset[str]:
    """The stop words of a language from stopwords-iso, a package of the catalog; UserError where it has none.

    RedPajama-v2 uses stopwords-json, from which stopwords-iso grew.
    """
    lists = json.loads(catalog.read_asset("stop_words"))
    if language not in lists:
        raise UserError(f"no stop words for language {language!r}; rules on stop words need one of: {' '.join(lists)}")
    return frozenset(lists[language])


@functools.cache
def bare_stop_words(language: str) -> frozenset[str]:
    """The stop words of a single word, in the form of `bare_words`."""
    return frozenset(words[0] for words in map(bare_words, stop_words(language)) if len(words) == 1)


def read_block_list(path: str) -> frozenset[str]:
    """Words and phrases of a block list; UserError if it is unreadable.

    One on each line, such as a file of LDNOOBW; or, in a file .json, a list, which may be the value of `words`.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path}: cannot read the block list ({error}); expected UTF-8 with one word or phrase on a line"
        ) from None
    lines = _json_words(text, path=Path(path)) if path.endswith(".json") else text.splitlines()
    return frozenset(line.strip() for line in lines if line.strip())


def _json_words(text: str, *, path: Path) -> list[str]:
    value = parse_json(text.encode(), path=path)
    words = value.get("words") if isinstance(value, dict) else value
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise UserError(f'{path}: expected a list of words and phrases, or {{"words": [...]}}')
    return words


@functools.lru_cache(maxsize=8)
def redpajama_block_list(path: str) -> frozenset[tuple[str, ...]]:
    """The entries as tuples of words, normalised like the text that is searched; NFD splits أ in both or in neither."""
    return frozenset(filter(None, (tuple(redpajama_normalise(entry).split()) for entry in read_block_list(path))))


@functools.lru_cache(maxsize=8)
def bare_block_list(path: str) -> frozenset[tuple[str, ...]]:
    """The entries of the list, each as a tuple of its `bare_words`."""
    return frozenset(filter(None, (tuple(bare_words(entry)) for entry in read_block_list(path))))
