"""From a conversation to token ids and the tokens that are learned: the replies with their end-of-turn token.

The mask is found in the rendered text. A reply begins where the template's generation prompt ends, and ends behind the
control token that closes it; where the template marks replies with `{% generation %}`, these marks count. The ids are
those of the whole text, tokenised together. The ids of what precedes a reply must be the first of them, as the model
sees them when it answers; where a piece joins both sides of the border, the conversation is refused.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from allam_jax.alignment.conversations import ASSISTANT, USER, BadRow, Messages, Pair, number_of_replies
from allam_jax.errors import UserError
from allam_jax.tokenizer.chat_template import ChatTemplate, Rendered
from allam_jax.tokenizer.tokenizer import Tokenizer

MOST_TURNS = 255
TOO_LONG = "longer than a row"


@dataclasses.dataclass(frozen=True)
class Sample:
    """Tokens, and which of them are learned.

    Attributes:
        ids: int32 [n].
        turns: uint8 [n]: 0 for what is not learned, else the number of the reply, from 1.
    """

    ids: np.ndarray
    turns: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)


class Masker:
    """Makes samples with one template and tokenizer, of at most `seq_len` pairs of neighbouring tokens."""

    def __init__(self, template: ChatTemplate, *, tokenizer: Tokenizer, seq_len: int, too_long: str):
        """`too_long` is that of ConversationSettings. UserError for a template whose replies cannot be found."""
        self._template, self._tokenizer = template, tokenizer
        self._most, self._too_long = seq_len + 1, too_long
        _check_prompts(template)

    def samples(self, messages: Messages, *, learned: str) -> tuple[list[Sample], list[str]]:
        """The samples of a conversation, and for each one that is left out the reason.

        `learned` is that of SftSettings. BadRow for a conversation that the template does not render, or whose
        replies cannot be told from what precedes them.
        """
        if learned == "all":
            return _sorted_out([self._sample(messages, first=1)])
        ends = [place + 1 for place in range(len(messages)) if _closes_turn(messages, place)]
        ends = ends if learned == "augmented" else ends[-1:]
        return _sorted_out([self._sample(messages[:end], first=_of_last_turn(messages[:end])) for end in ends])

    def pair(self, pair: Pair) -> tuple[list[Sample], list[str]]:
        """Chosen and rejected, with what they do not share learned; or neither, and the reason. BadRow as above."""
        first = number_of_replies(pair.chosen[: pair.shared]) + 1
        sides, left_out = _sorted_out([self._sample(side, first=first) for side in (pair.chosen, pair.rejected)])
        if not left_out and sum(len(side) - 1 for side in sides) >= self._most:
            left_out = [f"{TOO_LONG}, in which both sides must fit"]
        return ([], left_out[:1]) if left_out else (sides, [])

    def _sample(self, messages: Messages, *, first: int) -> Sample | str:
        """The sample with the replies from number `first` on learned, or why there is none."""
        rendered = self._render(messages)
        ids = self._template.encode(rendered)
        places = self._replies(messages, rendered, first=first)
        learned = {number: self._tokens_of(place, rendered, ids) for number, place in places.items()}
        turns = np.zeros(len(ids), np.uint8)
        for number, place in learned.items():
            turns[slice(*place)] = number
        most = self._most
        if len(ids) > most:
            if self._too_long == "skip":
                return TOO_LONG
            if self._too_long == "whole_turns":
                most = max((end for _, end in learned.values() if end <= most), default=0)
        found = Sample(np.asarray(ids[:most], np.int32), turns[:most])
        if not found.turns[1:].any():
            return TOO_LONG if len(ids) > most else "no token is learned"
        return found

    def _replies(self, messages: Messages, rendered: Rendered, *, first: int) -> dict[int, tuple[int, int]]:
        """Number, from `first` on, and characters of each reply."""
        count = number_of_replies(messages)
        if count > MOST_TURNS:
            raise BadRow(f"more than {MOST_TURNS} replies")
        if rendered.generated:
            if len(rendered.generated) != count:
                raise BadRow("the template marks another number of replies than there are")
            return {number: place for number, place in enumerate(rendered.generated, start=1) if number >= first}
        replies = [place for place, message in enumerate(messages) if message["role"] == ASSISTANT]
        return {number: self._by_prefix(messages, replies[number - 1], rendered) for number in range(first, count + 1)}

    def _by_prefix(self, messages: Messages, place: int, rendered: Rendered) -> tuple[int, int]:
        """The characters of the reply at a place: behind what precedes it, which ends with the generation prompt."""
        before = self._render(messages[:place], asks=True).text
        behind = self._render(messages[: place + 1]).text
        if not (rendered.text.startswith(behind) and behind.startswith(before)):
            raise BadRow("the template writes earlier turns differently once others follow")
        return len(before), _end_of_turn(rendered, len(before), len(behind))

    def _render(self, messages: Sequence[Mapping[str, Any]], *, asks: bool = False) -> Rendered:
        try:
            return self._template.render(messages, add_generation_prompt=asks)
        except UserError as error:
            raise BadRow(f"the template does not render it: {str(error).removeprefix(self._template.name)}") from None

    def _tokens_of(self, place: tuple[int, int], rendered: Rendered, ids: Sequence[int]) -> tuple[int, int]:
        start, end = (self._tokens_before(border, rendered, ids) for border in place)
        return start, end

    def _tokens_before(self, border: int, rendered: Rendered, ids: Sequence[int]) -> int:
        """How many of the ids are those of the text before a border."""
        known = [span for span in rendered.controls if span[1] <= border]
        before = self._template.encode(Rendered(rendered.text[:border], tuple(known), ()))
        if list(ids[: len(before)]) != before:
            raise BadRow("a token joins a reply and what precedes or follows it")
        return len(before)


def _closes_turn(messages: Messages, place: int) -> bool:
    """Whether a message is the last reply of a turn: what follows, if anything, is the user's."""
    follows = messages[place + 1]["role"] if place + 1 < len(messages) else USER
    return messages[place]["role"] == ASSISTANT and follows == USER


def _of_last_turn(messages: Messages) -> int:
    """The number of the first reply behind the last message of the user. With tools a turn has several."""
    asked = max(place for place, message in enumerate(messages) if message["role"] == USER)
    return number_of_replies(messages[:asked]) + 1


def _end_of_turn(rendered: Rendered, start: int, end: int) -> int:
    """The end of the last control token of a reply that only white space follows; else the end of its text."""
    inside = [span for span in rendered.controls if start <= span[0] and span[1] <= end]
    if inside and not rendered.text[inside[-1][1] : end].strip():
        return inside[-1][1]
    return end


def _sorted_out(found: Sequence[Sample | str]) -> tuple[list[Sample], list[str]]:
    return [one for one in found if isinstance(one, Sample)], [one for one in found if isinstance(one, str)]


def _check_prompts(template: ChatTemplate) -> None:
    """UserError where a header would be learned: no marks of generation, and no generation prompt that has it."""
    question, answer = {"role": USER, "content": "?"}, {"role": ASSISTANT, "content": "="}
    try:
        prompt = template.render([question], add_generation_prompt=True)
        whole = template.render([question, answer])
    except UserError:  # it wants other messages; those of the data will show
        return
    if whole.generated:
        return
    header = whole.text[len(prompt.text) : whole.text.rfind("=")]
    if whole.text.startswith(prompt.text) and header.strip():
        raise UserError(
            f"{template.name}: writes {header.strip()[:40]!r} before a reply but not as its generation prompt, so the "
            "header would be learned; put {% generation %} and {% endgeneration %} around replies in the template"
        )
