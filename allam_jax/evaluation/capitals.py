"""Questions for the capitals of countries, the same ones in two languages; and what answers to them amount to.

The package is KGeography's, whose translators have rendered countries and capitals. Asked without and behind worked
examples, they show what a model knows and whether it still learns from its context: continued pre-training can destroy
the second long before bits per byte show it (2506.00288).
"""

import gettext
import io
import random
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from allam_jax.corpus import catalog
from allam_jax.corpus.packages import iterate_members
from allam_jax.evaluation.choice_scores import Answered, summary, wilson
from allam_jax.evaluation.items import Question
from allam_jax.files import unit_hash

PACKAGE = "kgeography-data"
_MAP = "world.kgm"
_DIVISIONS = f"./usr/share/kgeography/{_MAP}"
_WORDS = "./usr/share/locale/ar/LC_MESSAGES/kgeography.mo"
_CHOICES = 4
# An item, up to its answer, and the answer.
_ASKED = {
    "en": "Question: What is the capital of {country}?\nAnswer:",
    "ar": "سؤال: ما عاصمة {country}؟\nالجواب:",
}
LANGUAGES = tuple(_ASKED)

Scored = Callable[[list[tuple[str, str]]], list[tuple[float, bool]]]  # texts -> log-probability, whether it is greedy


class Country(NamedTuple):
    """A country and its capital; `name` and `capital` have the keys of `LANGUAGES`."""

    name: dict[str, str]
    capital: dict[str, str]


def countries() -> dict[str, Country]:
    """The countries of the package by English name, in alphabetical order, where both names are translated."""
    members = iterate_members(catalog.fetch(PACKAGE), pattern="|".join(map(re.escape, (_WORDS, _DIVISIONS))))
    files = dict(members)
    words = gettext.GNUTranslations(io.BytesIO(files[_WORDS]))
    world = ElementTree.fromstring(files[_DIVISIONS])
    found: dict[str, Country] = {}
    for division in world.iter("division"):
        country, capital = division.findtext("name"), division.findtext("capital")
        if country and capital:
            country_ar, capital_ar = words.pgettext(_MAP, country), words.pgettext(_MAP, capital)
            if all(re.search(r"[\u0621-\u064a]", text) for text in (country_ar, capital_ar)):
                found[country] = Country({"en": country, "ar": country_ar}, {"en": capital, "ar": capital_ar})
    return dict(sorted(found.items()))


def is_taught(country: str) -> bool:
    """Whether task `instruction_data` may teach the capital of a country, by its English name: a fixed half of them.

    What a tuned model has kept is asked of the other half (`probe.untaught`).
    """
    return unit_hash(f"taught capital of {country}") < 0.5


def capital_questions(*, seed: int, untaught: bool = False) -> dict[str, list[Question]]:
    """For each language the same questions in the same order: a country, and its capital among three others.

    `untaught` leaves out the countries of `is_taught`.
    """
    known = countries()
    capitals = [tuple(country.capital[language] for language in LANGUAGES) for country in known.values()]
    chance = random.Random(seed)
    found: dict[str, list[Question]] = {language: [] for language in LANGUAGES}
    for id_, country in known.items():
        own = tuple(country.capital[language] for language in LANGUAGES)
        chosen = [own, *chance.sample(sorted({other for other in capitals if other[0] != own[0]}), _CHOICES - 1)]
        chance.shuffle(chosen)
        answer = chosen.index(own)
        for language, choices in zip(LANGUAGES, zip(*chosen, strict=True), strict=True):
            found[language].append(Question(id_, country.name[language], choices, answer, ""))
    order = chance.sample(range(len(known)), len(known))
    if untaught:
        order = [number for number in order if not is_taught(found["en"][number].id)]
    return {language: [questions[number] for number in order] for language, questions in found.items()}


def capital_scores(
    questions: Sequence[Question], *, language: str, examples: Sequence[Question], score: Scored
) -> dict[str, Any]:
    """What a model makes of the questions behind worked examples.

    Returns:
        `summary` of the choices, by their log-likelihood and by that for each byte; `written`: the share of questions
        that the model, asked to go on, answers with exactly the capital, and its 95 % interval.
    """
    shown = "".join(f"{_asked(example, language)} {example.choices[example.answer]}\n\n" for example in examples)
    scores = score([(shown + _asked(asked, language), f" {choice}") for asked in questions for choice in asked.choices])
    items, written = [], 0
    for number, asked in enumerate(questions):
        own = scores[_CHOICES * number : _CHOICES * (number + 1)]
        by_byte = [value / len(choice.encode()) for (value, _), choice in zip(own, asked.choices, strict=True)]
        written += own[asked.answer][1]
        items.append(
            Answered(
                id=asked.id,
                right=asked.answer,
                chosen=int(np.argmax([value for value, _ in own])),
                texts=asked.choices,
                by_characters=None,
                by_bytes=float(int(np.argmax(by_byte)) == asked.answer),
            )
        )
    low, high = wilson(written, len(questions))
    return summary(items) | {"written": written / len(questions), "written_low": low, "written_high": high}


def _asked(question: Question, language: str) -> str:
    return _ASKED[language].format(country=question.text)
