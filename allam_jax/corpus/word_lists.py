"""Lists of words that tags count: stop words, blocked words, words of advertising."""

import functools
import json
from pathlib import Path

from allam_jax.corpus import catalog
from allam_jax.corpus.words import bare_words, redpajama_normalise
from allam_jax.errors import UserError

# What advertising and search-engine spam repeats, in the form of `bare_words`. Short on purpose: words that an honest
# text also uses now and then only count as a share of all its words.
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
    """Stop words of a language as stopwords-iso lists them (package of the catalog); UserError where it has none.

    RedPajama-v2 takes its list from stopwords-json, which stopwords-iso has grown out of.
    """
    lists = json.loads(catalog.read_asset("stop_words"))
    if language not in lists:
        raise UserError(f"no stop words for language {language!r}; rules on stop words need one of: {' '.join(lists)}")
    return frozenset(lists[language])


@functools.cache
def bare_stop_words(language: str) -> frozenset[str]:
    """The stop words in the form of `bare_words`, those of a single word."""
    return frozenset(words[0] for words in map(bare_words, stop_words(language)) if len(words) == 1)


def read_block_list(path: str) -> frozenset[str]:
    """Words and phrases of a block list, one a line, such as a file of LDNOOBW; UserError if it cannot be read."""
    try:
        lines = Path(path).expanduser().read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path}: cannot read the block list ({error}); expected UTF-8, a word or phrase a line"
        ) from None
    return frozenset(line.strip() for line in lines if line.strip())


@functools.lru_cache(maxsize=8)
def redpajama_block_list(path: str) -> frozenset[str]:
    """The list normalised as the text that it is looked for in: NFD takes أ apart, in both or in neither."""
    return frozenset(filter(None, map(redpajama_normalise, read_block_list(path))))


@functools.lru_cache(maxsize=8)
def bare_block_list(path: str) -> frozenset[tuple[str, ...]]:
    """The list as tuples of `bare_words`."""
    return frozenset(filter(None, (tuple(bare_words(entry)) for entry in read_block_list(path))))
