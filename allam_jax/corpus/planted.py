"""Plants damage in real documents and records it, to measure what the pipeline finds and what it wrongly flags.

A hash of a document's id decides which kinds of damage it gets:
    exact_copy: a second document with the same words, other spaces and punctuation, and without vowel marks
    near_copy: a second document with another beginning and end, as mirrors of a page have
    url_copy: a second document with the first half of the text, at the same address spelled differently
    mojibake: the document itself, decoded with the wrong character set
    spam: a second document, an advertisement of stock phrases, handles, numbers and links
    foreign: a second document in another language, or source code
"""

import hashlib
import random
from collections.abc import Iterable, Iterator
from typing import Any

from allam_jax.corpus.document import Document
from allam_jax.corpus.normalise import without_marks
from allam_jax.files import unit_hash

KINDS = ("exact_copy", "near_copy", "url_copy", "mojibake", "spam", "foreign")
_NEAR_WORDS = 200  # the change to a shorter text would be too large for a near copy
_MOJIBAKE_WORDS = 30
_CHARACTER_SETS = (("utf-8", "latin-1"), ("utf-8", "cp1252"), ("cp1256", "cp1252"))

_PHRASES = {
    "ar": "خصم كبير على جميع المنتجات|اشتر الآن واحصل على الثاني مجانا|اتصل بنا واتساب|عروض لفترة محدودة"
    "|أرخص الأسعار في المملكة"
    "|التوصيل مجانا لجميع المدن|اطلب الآن من متجرنا|كوبون خصم إضافي|اضغط هنا للتسوق|سجل الآن واربح|للبيع بأفضل سعر",
    "en": "huge discount on all products|buy now and get one free|call us on whatsapp|limited time offer|cheap prices"
    "|free shipping worldwide|order now from our shop|extra coupon inside|click here to shop|subscribe and win cash",
}
_GOODS = {
    "ar": "عطور ساعات أحذية هواتف مفروشات نظارات حقائب مكيفات سجاد ألعاب",
    "en": "perfume watches shoes phones furniture glasses bags carpets toys laptops",
}


def plant(
    documents: Iterable[Document], *, foreign: Iterator[Document], share: float, seed: int
) -> Iterator[tuple[dict[str, str], dict[str, Any] | None]]:
    """Yields (row, truth) for the rows of a crawl, from real documents of one language.

    A row has `id, text, url`. A truth, which is None for an untouched document, has `id, kind` and, for mojibake, the
    original `text`. `share` is the expected share of documents that each kind of damage hits. When the `foreign`
    documents are used up, no more are planted.
    """
    for document in documents:
        name = f"{document.source}:{document.id}"
        address = f"https://{document.source.replace('_', '-')}.example/{hashlib.md5(name.encode()).hexdigest()}"
        row = {"id": name, "text": document.text, "url": address}
        strikes = [kind for kind in KINDS if unit_hash(f"{seed}:{kind}:{name}") < share]
        rng = random.Random(f"{seed}:{name}")
        damaged = _mojibake(document.text, rng) if "mojibake" in strikes else None
        if damaged is not None:
            yield row | {"text": damaged}, {"id": name, "kind": "mojibake", "text": document.text}
        else:
            yield row, None
        words = document.text.split()
        for kind in strikes:
            copy = {"id": f"{name}#{kind}", "text": "", "url": f"{address}/{kind}"}
            if kind == "exact_copy" and damaged is None:
                copy["text"] = f"« {'  '.join(without_marks(document.text).split())} » ."
            elif kind == "near_copy" and damaged is None and len(words) >= _NEAR_WORDS:
                copy["text"] = f"{_spaced(rng, 3)} {document.text} {_spaced(rng, 4)}"
            elif kind == "url_copy" and damaged is None and len(words) >= 2 * _MOJIBAKE_WORDS:
                copy |= {
                    "text": " ".join(words[: len(words) // 2]),
                    "url": address.replace("https://", "HTTP://www.") + "/#top",
                }
            elif kind == "spam":
                copy["text"] = spam(document.language, rng)
            elif kind == "foreign" and (other := next(foreign, None)) is not None:
                copy |= {"id": f"{other.source}:{other.id}#foreign", "text": other.text}
            if copy["text"]:
                yield copy, {"id": copy["id"], "kind": kind}


def _mojibake(text: str, rng: random.Random) -> str | None:
    """The text after a wrong decoding; None if every such decoding loses bytes or changes nothing."""
    if len(text.split()) < _MOJIBAKE_WORDS or text.isascii():
        return None
    for written, read in rng.sample(_CHARACTER_SETS, k=len(_CHARACTER_SETS)):
        try:
            damaged = text.encode(written).decode(read)
        except UnicodeError:
            continue
        if damaged != text:  # two character sets can agree on all of the text's characters
            return damaged
    return None


def phrase(language: str, rng: random.Random) -> str:
    """A few words of advertising; KeyError for another language than ar and en."""
    return rng.choice(_PHRASES[language].split("|"))


def spam(language: str, rng: random.Random) -> str:
    """Lines of advertising with handles, numbers and links; KeyError for another language than ar and en."""
    phrases, goods = _PHRASES[language].split("|"), _GOODS[language].split()
    lines = []
    for _ in range(rng.randint(3, 7)):
        words = [rng.choice(phrases), rng.choice(goods), rng.choice(phrases), f"{rng.randint(5, 90)}%"]
        words.append(
            rng.choice(
                (
                    f"05{rng.randrange(10**8):08d}",
                    f"https://shop{rng.randrange(1000)}.example/{rng.randrange(10**5)}",
                    f"#{rng.choice(goods)} #{rng.choice(goods)}",
                    f"@store{rng.randrange(1000)}",
                )
            )
        )
        lines.append(" ".join(words))
    return "\n".join(lines)


def _spaced(rng: random.Random, count: int) -> str:
    return " ".join(f"{rng.randrange(10**6):06d}" for _ in range(count))
