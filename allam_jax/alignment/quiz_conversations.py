"""Conversations with exact answers, made of the catalog's parallel texts: capitals, chapters of hadith, translations.

Templates over labelled and parallel texts, as in FLAN (2109.01652) and xP3 (2211.01786), in English and Arabic. What is
asked, in which words and in which order follows from a hash of the item and the seed, so that other settings do not
change the conversations that both of them have.

Only the capitals of `capitals.is_taught` occur. The capital of a country is asked for in several ways, each of which
falls into one part of the data; so a held-out question asks for a fact that may have been learnt from other words.
A hadith, with all that is asked about it, is in one part.
"""

import dataclasses
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from allam_jax.alignment.conversations import ASSISTANT, USER
from allam_jax.corpus import catalog
from allam_jax.corpus.extract import Hadith
from allam_jax.corpus.normalise import normalise
from allam_jax.evaluation.capitals import PACKAGE, Country, is_taught
from allam_jax.files import unit_hash

LANGUAGES = ("en", "ar")
_OTHER = {"en": "ar", "ar": "en"}
_MOST_FOLLOW_UPS = 2

# What is asked about a country, and the answer: kind -> ways of asking, the reply. `other` is its other name.
_COUNTRY = {
    "en": {
        "capital": (
            (
                "What is the capital of {country}?",
                "Name the capital city of {country}.",
                "Which city is {country}'s capital?",
            ),
            "The capital of {country} is {capital}.",
        ),
        "country": (
            ("{capital} is the capital of which country?", "Which country has {capital} as its capital?"),
            "{capital} is the capital of {country}.",
        ),
        "name": (("What is {country} called in Arabic?",), "{country} is called {other} in Arabic."),
    },
    "ar": {
        "capital": (
            ("ما عاصمة {country}؟", "اذكر عاصمة {country}.", "أي مدينة هي عاصمة {country}؟"),
            "عاصمة {country} هي {capital}.",
        ),
        "country": (("{capital} عاصمة أي بلد؟", "ما البلد الذي عاصمته {capital}؟"), "{capital} عاصمة {country}."),
        "name": (("ما اسم {country} بالإنجليزية؟",), "اسم {country} بالإنجليزية هو {other}."),
    },
}
_AND_OF = {"en": "And of {country}?", "ar": "وما عاصمة {country}؟"}

# What is asked about a hadith; `text` is in the language of the question. The answer to `translation` is in the other.
_HADITH = {
    "en": {
        "chapter": "Which chapter of {book} is this hadith from?\n{text}",
        "its chapter": "Which chapter of {book} is it from?",
        "chapter's name": "What is this chapter called in Arabic?",
        "translation": "Translate this hadith into Arabic:\n{text}",
    },
    "ar": {
        "chapter": "من أي باب في {book} هذا الحديث؟\n{text}",
        "its chapter": "من أي باب في {book} هو؟",
        "chapter's name": "ما اسم هذا الباب بالإنجليزية؟",
        "translation": "ترجم هذا الحديث إلى الإنجليزية:\n{text}",
    },
}


class Turn(NamedTuple):
    """A question and its reply; `is_exact` if no other reply is as good."""

    kind: str
    question: str
    reply: str
    is_exact: bool


@dataclasses.dataclass(frozen=True)
class Quiz:
    """A conversation.

    Attributes:
        id: of its own.
        unit: what stays in one part of the data with all other conversations about it.
        language: of the questions.
        turns: of the conversation.
        provenance: where the facts come from.
        passage: the text that it is about, by which copies in training data are found; empty if there is none.
    """

    id: str
    unit: str
    language: str
    turns: Sequence[Turn]
    provenance: Mapping[str, str]
    passage: str = ""

    def messages(self, turns: int | None = None) -> list[dict[str, str]]:
        """The messages of the first turns, or of all."""
        return [
            {"role": role, "content": text}
            for turn in self.turns[:turns]
            for role, text in ((USER, turn.question), (ASSISTANT, turn.reply))
        ]

    def record(self) -> dict[str, Any]:
        """A row of conversations; `text` is the same as plain text, for pre-training."""
        messages = self.messages()
        text = "\n".join(message["content"] for message in messages)
        return self._facts(self.id) | {"messages": messages, "text": text}

    def asked(self) -> Iterator[dict[str, Any]]:
        """For each exact turn, the conversation up to its reply."""
        for number, turn in enumerate(self.turns, start=1):
            if turn.is_exact:
                facts = self._facts(f"{self.id}/{number}") | {"kind": turn.kind, "turn": number}
                yield facts | {"messages": self.messages(number)}

    def _facts(self, id_: str) -> dict[str, Any]:
        return {"id": id_, "language": self.language, "provenance": dict(self.provenance)}


def country_quizzes(known: Mapping[str, Country], *, seed: int) -> Iterator[Quiz]:
    """Questions about the countries that may be taught; those for a capital may be followed by others for capitals."""
    taught = {name: country for name, country in known.items() if is_taught(name)}
    provenance = _provenance(PACKAGE)
    for name, country in taught.items():
        for language in LANGUAGES:
            for kind, (questions, _) in _COUNTRY[language].items():
                for way, question in enumerate(questions):
                    unit = f"{name}/{language}/{kind}/{way}"
                    turns = [_about_country(country, language, kind=kind, question=question)]
                    if kind == "capital":
                        chance = random.Random(f"{seed}/{unit}")
                        others = chance.sample(sorted(taught.keys() - {name}), chance.randint(0, _MOST_FOLLOW_UPS))
                        turns += [
                            _about_country(taught[other], language, kind=kind, question=_AND_OF[language])
                            for other in others
                        ]
                    yield Quiz(f"{PACKAGE}/{unit}", unit, language, turns, provenance | {"id": name})


def hadith_quizzes(book: str, *, most_words: int) -> Iterator[Quiz]:
    """Two conversations about each hadith of at most so many words in either language, one in each language.

    One asks for its chapter and then for that chapter's name in the other language; the other asks for a translation
    and then for the chapter. A hash of the hadith says which is in English.
    """
    provenance = _provenance(book.replace("_", "-"))
    for hadith in catalog.parallel_hadiths(book):
        text = {
            language: " ".join(normalise(text, remove=("tashkeel", "tatweel", "direction_marks")).split())
            for language, text in hadith.text.items()
        }
        if max(len(words.split()) for words in text.values()) > most_words:
            continue
        unit = f"{book}/{hadith.id}"
        first = LANGUAGES[unit_hash(unit) < 0.5]
        for language, kinds in (
            (first, ("chapter", "chapter's name")),
            (_OTHER[first], ("translation", "its chapter")),
        ):
            turns = [_about_hadith(hadith, text, language, kind=kind) for kind in kinds]
            id_ = f"{unit}/{language}"
            yield Quiz(id_, unit, language, turns, provenance | {"id": hadith.id}, passage=text[language])


def untaught_questions(known: Mapping[str, Country]) -> Iterator[str]:
    """What is asked, in any words, about the countries that are not taught."""
    for name, country in known.items():
        if not is_taught(name):
            for language in LANGUAGES:
                for kind, (questions, _) in _COUNTRY[language].items():
                    for question in questions:
                        yield _about_country(country, language, kind=kind, question=question).question


def _about_country(country: Country, language: str, *, kind: str, question: str) -> Turn:
    names = {"country": country.name[language], "capital": country.capital[language]}
    names["other"] = country.name[_OTHER[language]]
    _, reply = _COUNTRY[language][kind]
    return Turn(kind, question.format(**names), reply.format(**names), True)


def _about_hadith(hadith: Hadith, text: Mapping[str, str], language: str, *, kind: str) -> Turn:
    question = _HADITH[language][kind].format(book=hadith.book[language], text=text[language])
    if kind == "translation":
        return Turn(kind, question, text[_OTHER[language]], False)
    if kind == "chapter's name":
        return Turn(kind, question, hadith.chapter[_OTHER[language]], True)
    return Turn("chapter", question, hadith.chapter[language], True)


def _provenance(package: str) -> dict[str, str]:
    source = catalog.PACKAGES[package]
    return {"package": f"{source.name} {source.version}", "licence": source.license}
