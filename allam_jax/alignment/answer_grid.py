"""Answers of a model over a grid of temperatures and nucleus values, and the pairs that they make.

The ALLaM paper samples ten answers a prompt in this way, and prefers the reply of the data to them.
"""

import collections
import itertools
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from allam_jax.alignment.conversations import ASSISTANT, NOT_LEARNED, BadRow, conversation_of, is_learned
from allam_jax.alignment.settings import PreferenceSettings
from allam_jax.alignment.text_measures import differ_in_language
from allam_jax.corpus.minhash import jaccard
from allam_jax.corpus.shingles import HashedWords
from allam_jax.generation.over_rows import ENDED, Backend, RowAnswer
from allam_jax.generation.requests import Sampling
from allam_jax.generation.rows import Prompt

# Signs that change what is said, unlike the marks of sentences and of emphasis.
_WORD = re.compile(r"\w+|[-+/%&<>=~^|]|(?<!\*)\*(?!\*)|[\u2190-\u22ff\u2600-\u27bf\U0001f000-\U0001faff]")
_AHEAD = 64  # prompts that every point of the grid answers before the next ones come


def grid_of(settings: PreferenceSettings, *, seed: int) -> list[Sampling]:
    """A way of sampling for each temperature and nucleus value; seeds differ, so that answers do."""
    points = itertools.product(settings.temperatures, settings.top_ps)
    return [
        Sampling(
            max_new_tokens=settings.max_new_tokens,
            temperature=temperature,
            top_p=top_p,
            samples=settings.samples,
            seed=(seed + number) % 2**32,
        )
        for number, (temperature, top_p) in enumerate(points)
    ]


class GridBackend:
    """Asks every prompt at each point of a grid; the choices of an answer are those of the points one after another."""

    def __init__(self, backends: Sequence[Backend]):
        self._backends = backends

    def describe(self) -> dict[str, Any]:
        """What each point says."""
        return {"grid": [backend.describe() for backend in self._backends]}

    def answers(self, prompts: Iterable[Prompt]) -> Iterator[RowAnswer]:
        """See `over_rows.Backend`; a row that one point cannot answer has no answer."""
        prompts = iter(prompts)
        while block := list(itertools.islice(prompts, _AHEAD)):
            # One point after another, because they may share an engine.
            by_point = [list(backend.answers(iter(block))) for backend in self._backends]
            for found in zip(*by_point, strict=True):
                failed = next((answer for answer in found if answer.error), None)
                choices = tuple(choice for answer in found for choice in answer.choices)
                yield failed or RowAnswer(choices, found[0].prompt_tokens)


def asked_of(number: int, record: Mapping[str, Any] | str) -> Prompt:
    """The prompt of a conversation: all before its last reply that may be learned, which its answer has as `chosen`."""
    try:
        if isinstance(record, str):
            raise BadRow(f"a row {record}")
        messages = conversation_of(record)
        place = max((place for place, message in enumerate(messages) if is_learned(message)), default=0)
        if not place:
            raise BadRow(NOT_LEARNED)
    except BadRow as reason:
        return Prompt(number, "", problem=str(reason))
    return Prompt(number, messages[:place], {"chosen": messages[place]["content"]})


def pairs_of(
    answered: Mapping[str, Any],
    *,
    settings: PreferenceSettings,
    points: Sequence[Mapping[str, Any]],
    left_out: collections.Counter[str],
) -> Iterator[dict[str, Any]]:
    """Pairs of the conversation's own reply and answers of the model, with where each answer comes from.

    Args:
        answered: a row that `over_rows` has written.
        settings: what an answer must be to count as rejected.
        points: of the grid, for the provenance.
        left_out: counts the reasons why answers are not used.
    """
    chosen, kept = answered["chosen"], list[str]()
    for number, answer in enumerate(answered["answers"]):
        text = answer["text"].strip()
        if reason := _unfit(text, answer["finish_reason"], chosen=chosen, others=kept, settings=settings):
            left_out[reason] += 1
            continue
        kept.append(text)
        point = dict(points[number // settings.samples]) | {"sample": number % settings.samples}
        yield {
            "messages": answered["messages"],
            "chosen": [{"role": ASSISTANT, "content": chosen}],
            "rejected": [{"role": ASSISTANT, "content": text}],
            "row": answered["row"],
            "provenance": point,
        }
        if len(kept) == settings.pairs_of_prompt:
            return


def _unfit(text: str, finish_reason: str, *, chosen: str, others: Sequence[str], settings: PreferenceSettings) -> str:
    """Why an answer cannot be the rejected side; empty if it can."""
    if not text:
        return "empty"
    if finish_reason not in ENDED and not settings.keep_cut:
        return "cut"
    if similarity(text, chosen) >= settings.most_similar:
        return "equal or too near to the chosen"
    if any(similarity(text, other) >= settings.most_similar for other in others):
        return "equal or too near to another"
    if not settings.keep_other_language and differ_in_language(text, chosen):
        return "another language"
    return ""


def similarity(one: str, other: str) -> float:
    """Shared pairs of neighbouring words over all of them (Jaccard), 0 to 1; 1 for texts with the same words.

    Operators and emoji are words too.
    """
    first, second = (_words(text) for text in (one, other))
    if first == second:
        return 1.0
    return jaccard(*HashedWords.of([["", *first], ["", *second]]).shingles(2))


def _words(text: str) -> list[str]:
    folded = "".join(c for c in unicodedata.normalize("NFKD", text.casefold()) if not unicodedata.combining(c))
    return _WORD.findall(folded)
