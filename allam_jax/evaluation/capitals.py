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
from typing import Any

import numpy as np

from allam_jax.corpus import catalog
from allam_jax.corpus.packages import read_member
from allam_jax.evaluation.choice_scores import Answered, summary, wilson
from allam_jax.evaluation.items import Question

PACKAGE = "kgeography-data"
_MAP = "world.kgm"
_CHOICES = 4
# An item, up to its answer, and the answer.
_ASKED = {
    "en": "Question: What is the capital of {country}?\nAnswer:",
    "ar": "سؤال: ما عاصمة {country}؟\nالجواب:",
}
LANGUAGES = tuple(_ASKED)

Scored = Callable[[list[tuple[str, str]]], list[tuple[float, bool]]]  # texts -> log-probability, whether it is greedy


def capital_questions(*, seed: int) -> dict[str, list[Question]]:
    """For each language the same questions in the same order: a country, and its capital among three others."""
    archive = catalog.fetch(PACKAGE)
    words = gettext.GNUTranslations(
        io.BytesIO(read_member(archive, member="./usr/share/locale/ar/LC_MESSAGES/kgeography.mo"))
    )
    world = ElementTree.fromstring(read_member(archive, member=f"./usr/share/kgeography/{_MAP}"))
    capitals: dict[str, tuple[str, str, str]] = {}
    for division in world.iter("division"):
        country, capital = division.findtext("name"), division.findtext("capital")
        if country and capital:
            country_ar, capital_ar = words.pgettext(_MAP, country), words.pgettext(_MAP, capital)
            if all(re.search(r"[\u0621-\u064a]", text) for text in (country_ar, capital_ar)):
                capitals[country] = (capital, country_ar, capital_ar)
    chance = random.Random(seed)
    found: dict[str, list[Question]] = {language: [] for language in LANGUAGES}
    for country, (capital, country_ar, capital_ar) in sorted(capitals.items()):
        others = sorted({pair for pair in ((en, ar) for en, _, ar in capitals.values()) if pair[0] != capital})
        chosen = [(capital, capital_ar), *chance.sample(others, _CHOICES - 1)]
        chance.shuffle(chosen)
        answer = chosen.index((capital, capital_ar))
        for language, name, choices in zip(LANGUAGES, (country, country_ar), zip(*chosen, strict=True), strict=True):
            found[language].append(Question(country, name, choices, answer, ""))
    order = chance.sample(range(len(capitals)), len(capitals))
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
