"""Plants damage inside of documents and keeps the original, so that the right rewrite is known.

Kinds:
    advertisement: a sentence of advertising between two sentences
    inline_advertisement: words of advertising inside a sentence
    insult: an entry of a block list inside a sentence
    unknown_insult: the same, of entries that are kept from the rules and the worker
    broken_lines: line breaks inside sentences
    boilerplate: the menu of a page, in two languages
    spam: a line of stock phrases with a number, a link or a handle
"""

import dataclasses
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence

from allam_jax.corpus.planted import phrase, spam
from allam_jax.corpus.words import ends_sentence
from allam_jax.rewriting.document_pieces import sentences_of
from allam_jax.rewriting.restoration import still_there
from allam_jax.rewriting.settings import DAMAGE_KINDS, INSULTS

LANGUAGES = ("ar", "en")
_MENUS = (
    "الرئيسية | من نحن | Home | Contact us | اتصل بنا | Login",
    "Share on Facebook | Tweet | شارك الصفحة | طباعة | Print",
    "Menu » الأخبار » News » رياضة » Sport » المزيد",
)
_TRIES = 8  # until a place is found that cuts nothing planted
_LEAST_WORDS = 8  # a shorter sentence gets nothing inside


@dataclasses.dataclass(frozen=True)
class Damaged:
    """A text with damage: what it was, what it is, and what was planted, as kind and text, in the order of planting."""

    original: str
    text: str
    planted: Sequence[tuple[str, str]]


def damaged(
    text: str,
    *,
    language: str,
    insults: Mapping[str, Sequence[str]],
    shares: Mapping[str, float],
    rng: random.Random,
) -> Damaged:
    """Damages a text of one of `LANGUAGES`.

    Args:
        text: a document or a piece of one.
        language: of the text.
        insults: kind -> the entries of a block list that are planted as this kind; none: it is not planted.
        shares: kind -> probability that a text gets this damage.
        rng: decides where and what.
    """
    current, planted = text, list[tuple[str, str]]()
    for kind in DAMAGE_KINDS:
        strikes = rng.random() < shares.get(kind, 0.0)
        words = insults.get(kind, ())
        if not strikes or (kind in INSULTS and not words):
            continue
        for _ in range(_TRIES):
            found = _KINDS[kind](current, language, words, rng)
            # What was planted before stays whole, so that each can be looked for.
            if found is not None and all(still_there(one, found[0]) for _, one in planted):
                current = found[0]
                planted += [(kind, one) for one in found[1]]
                break
    return Damaged(text, current, planted)


_Found = tuple[str, Sequence[str]] | None  # the damaged text and what was planted; None if there is no place for it


def _between(text: str, new: str, rng: random.Random) -> str:
    """The text with one more sentence: at its beginning, at its end, or behind one that ends; not at a broken line."""
    sentences = list(sentences_of(text))
    ended = [number for number, one in enumerate(sentences[:-1], start=1) if ends_sentence(one.rstrip())]
    place = rng.choice([0, *ended, len(sentences)])
    before, after = "".join(sentences[:place]), "".join(sentences[place:])
    gap = "" if not before or before[-1].isspace() else " "
    return f"{before}{gap}{new} {after}" if after else f"{before}{gap}{new}"


def _advertisement(text: str, language: str, words: Sequence[str], rng: random.Random) -> _Found:
    first, second = phrase(language, rng), phrase(language, rng)
    new = f"{first[0].upper()}{first[1:]} https://shop{rng.randrange(1000)}.example {second}!"
    return _between(text, new, rng), [new]


def _inside(text: str, new: str, rng: random.Random) -> _Found:
    """The text with words behind a word inside one of its longer sentences."""
    gaps = list(_gaps(text))
    if not gaps:
        return None
    place = rng.choice(gaps)
    return f"{text[:place]} {new}{text[place:]}", [new]


def _gaps(text: str) -> Iterator[int]:
    """Places between two words of a sentence, away from its ends and on one line."""
    start = 0
    for sentence in sentences_of(text):
        ends = [match.end() for match in re.finditer(r"\S+(?= \S)", sentence)]
        if len(ends) >= _LEAST_WORDS:
            yield from (start + end for end in ends[2:-2])
        start += len(sentence)


def _inline(text: str, language: str, words: Sequence[str], rng: random.Random) -> _Found:
    return _inside(text, phrase(language, rng), rng)


def _insult(text: str, language: str, words: Sequence[str], rng: random.Random) -> _Found:
    return _inside(text, rng.choice(words), rng)


def _broken_lines(text: str, language: str, words: Sequence[str], rng: random.Random) -> _Found:
    """A break behind every five to nine words; what was planted is each break with the words around it."""
    gaps, places, planted = sorted(_gaps(text)), list[int](), list[str]()
    at = rng.randint(2, 5)
    while at < len(gaps):
        places.append(gaps[at])
        at += rng.randint(5, 9)
    for place in places:
        before, after = text[:place].split()[-1], text[place + 1 :].split(maxsplit=1)[0]
        planted.append(f"{before}\n{after}")
    pieces = [text[a:b] for a, b in zip([0, *(p + 1 for p in places)], [*places, len(text)], strict=True)]
    return ("\n".join(pieces), planted) if places else None


def _boilerplate(text: str, language: str, words: Sequence[str], rng: random.Random) -> _Found:
    menu = rng.choice(_MENUS)
    return (f"{menu}\n{text}" if rng.random() < 0.5 else f"{text}\n{menu}"), [menu]


def _spam(text: str, language: str, words: Sequence[str], rng: random.Random) -> _Found:
    line = spam(language, rng).split("\n")[0]
    return f"{text}\n{line}", [line]


_KINDS: dict[str, Callable[[str, str, Sequence[str], random.Random], _Found]] = {
    "broken_lines": _broken_lines,  # first, so that a break never falls into what is planted
    "inline_advertisement": _inline,
    "insult": _insult,
    "unknown_insult": _insult,
    "advertisement": _advertisement,
    "boilerplate": _boilerplate,
    "spam": _spam,
}
