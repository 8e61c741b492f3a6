"""From a conversation to token ids and the tokens that are learned: the replies with their end-of-turn token.

The mask is found in the rendered text. A reply begins where the template's generation prompt ends, and ends behind the
control token that closes it; where the template marks replies with `{% generation %}`, these marks count. The ids are
those of the whole text, tokenised together. The ids of what precedes a reply must be the first of them, as the model
sees them when it answers; where a piece joins both sides of the border, the conversation is refused.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from allam_jax.alignment.conversations import (
    ASSISTANT,
    NOT_LEARNED,
    USER,
    BadRow,
    Messages,
    Pair,
    is_learned,
    number_of_replies,
)
from allam_jax.errors import UserError
from allam_jax.tokenizer.chat_template import ChatTemplate, Encoded, Prefix, Rendered
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


class Made(NamedTuple):
    """What becomes of a record: the text by whose hash it is held out or not, its samples, and why others are none."""

    text: Messages
    samples: list[Sample]
    left_out: list[str]


@dataclasses.dataclass(frozen=True)
class _Wish:
    """A sample: the first `count` messages of a conversation, with the replies from number `first` on learned.

    Replies that the data exclude (`is_learned`) are not.
    """

    count: int
    first: int


class Masker:
    """Makes samples with one template and tokenizer, of at most `seq_len` pairs of neighbouring tokens."""

    def __init__(self, template: ChatTemplate, *, tokenizer: Tokenizer, seq_len: int, too_long: str):
        """`too_long` is that of ConversationSettings. UserError for a template whose replies cannot be found."""
        self._template, self._tokenizer = template, tokenizer
        self._most, self._too_long = seq_len + 1, too_long
        self._is_marked = _marks_replies(template)

    def samples(self, conversations: Sequence[Messages], *, learned: str) -> list[Made | BadRow]:
        """The samples of conversations.

        `learned` is that of SftSettings. BadRow for a conversation that the template does not render, or whose replies
        cannot be told from what precedes them.
        """
        made = self._made([(messages, _wishes(messages, learned=learned)) for messages in conversations])
        return [
            found if isinstance(found, BadRow) else Made(messages, *_sorted_out(found or [NOT_LEARNED]))
            for messages, found in zip(conversations, made, strict=True)
        ]

    def pairs(self, pairs: Sequence[Pair]) -> list[Made | BadRow]:
        """Chosen and rejected, with what they do not share learned; or neither, and the reason. BadRow as above."""
        made = self._made(
            [
                (side, [_Wish(len(side), number_of_replies(side[: pair.shared]) + 1)])
                for pair in pairs
                for side in (pair.chosen, pair.rejected)
            ]
        )
        return [self._both(pair, *sides) for pair, *sides in zip(pairs, made[0::2], made[1::2], strict=True)]

    def _both(self, pair: Pair, *found: list[Sample | str] | BadRow) -> Made | BadRow:
        if bad := next((side for side in found if isinstance(side, BadRow)), None):
            return bad
        sides, left_out = _sorted_out([one for side in found if not isinstance(side, BadRow) for one in side])
        if not left_out and sum(len(side) - 1 for side in sides) >= self._most:
            left_out = [f"{TOO_LONG}, in which both sides must fit"]
        if not left_out and np.array_equal(sides[0].ids, sides[1].ids):  # by white space that the template strips
            return BadRow("chosen and rejected have the same tokens")
        # Pairs that answer one prompt are held out together.
        return Made(pair.chosen[: pair.shared], [] if left_out else sides, left_out[:1])

    def _made(self, asked: Sequence[tuple[Messages, Sequence[_Wish]]]) -> list[list[Sample | str] | BadRow]:
        """The samples of each conversation, or why it has none. All texts are rendered at once."""
        prefixes = [(messages, self._prefixes(messages, wishes)) for messages, wishes in asked]
        found: list[list[Sample | str] | BadRow] = []
        for (messages, wishes), rendered in zip(asked, self._template.render_prefixes(prefixes), strict=True):
            texts = _Texts(self._template, messages, rendered)
            try:
                found.append([self._sample(texts, wish) for wish in wishes])
            except BadRow as reason:
                found.append(reason)
        return found

    def _prefixes(self, messages: Messages, wishes: Sequence[_Wish]) -> list[Prefix]:
        """What has to be rendered, without repeats."""
        found = dict.fromkeys(Prefix(wish.count, False) for wish in wishes)
        if not self._is_marked:
            for wish in wishes:
                for place in _learned_places(messages, wish).values():
                    found |= dict.fromkeys((Prefix(place, True), Prefix(place + 1, False)))
        return list(found)

    def _sample(self, texts: "_Texts", wish: _Wish) -> Sample | str:
        """A sample, or why there is none."""
        rendered = texts[Prefix(wish.count, False)]
        encoded = self._template.encode_placed(rendered)
        learned = {
            number: (self._tokens_before(start, rendered, encoded), self._tokens_before(end, rendered, encoded))
            for number, (start, end) in texts.replies(wish).items()
        }
        ids = encoded.ids
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

    def _tokens_before(self, border: int, rendered: Rendered, encoded: Encoded) -> int:
        found = self._template.tokens_before(border, rendered, encoded)
        if found is None:
            raise BadRow("a token joins a reply and what precedes or follows it")
        return found


class _Texts:
    """The renderings of one conversation: those that were made with others, and what else is asked for."""

    def __init__(self, template: ChatTemplate, messages: Messages, made: Mapping[Prefix, Rendered | UserError]):
        self._template, self._messages, self._made = template, messages, dict(made)

    def __getitem__(self, prefix: Prefix) -> Rendered:
        """The rendering of a prefix; BadRow where the template refuses it."""
        if prefix not in self._made:
            self._made |= self._template.render_prefixes([(self._messages, [prefix])])[0]
        found = self._made[prefix]
        if isinstance(found, UserError):
            raise BadRow(f"the template does not render it: {str(found).removeprefix(self._template.name)}")
        return found

    def replies(self, wish: _Wish) -> dict[int, tuple[int, int]]:
        """Number and characters of each reply that is learned."""
        rendered, places = self[Prefix(wish.count, False)], _places_of_replies(self._messages[: wish.count])
        if len(places) > MOST_TURNS:
            raise BadRow(f"more than {MOST_TURNS} replies")
        learned = _learned_places(self._messages, wish)
        if rendered.generated:
            if len(rendered.generated) != len(places):
                raise BadRow("the template marks another number of replies than there are")
            return {number: rendered.generated[number - 1] for number in learned}
        return {number: self._by_prefix(place, rendered) for number, place in learned.items()}

    def _by_prefix(self, place: int, rendered: Rendered) -> tuple[int, int]:
        """The characters of the reply at a place: behind what precedes it, which ends with the generation prompt."""
        before, behind = self[Prefix(place, True)].text, self[Prefix(place + 1, False)].text
        if not (rendered.text.startswith(behind) and behind.startswith(before)):
            raise BadRow("the template writes earlier turns differently once others follow")
        return len(before), _end_of_turn(rendered, len(before), len(behind))


def _wishes(messages: Messages, *, learned: str) -> list[_Wish]:
    """The samples of a conversation that have something to learn; `last` is the last one of these."""
    if learned == "all":
        wishes = [_Wish(len(messages), 1)]
    else:
        ends = [place + 1 for place in range(len(messages)) if _closes_turn(messages, place)]
        wishes = [_Wish(end, _of_last_turn(messages[:end])) for end in ends]
    wishes = [wish for wish in wishes if _learned_places(messages, wish)]
    return wishes[-1:] if learned == "last" else wishes


def _places_of_replies(messages: Messages) -> list[int]:
    return [place for place, message in enumerate(messages) if message["role"] == ASSISTANT]


def _learned_places(messages: Messages, wish: _Wish) -> dict[int, int]:
    """Number and place of each reply of a sample that is learned."""
    places = enumerate(_places_of_replies(messages[: wish.count]), start=1)
    return {number: place for number, place in places if number >= wish.first and is_learned(messages[place])}


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


def _marks_replies(template: ChatTemplate) -> bool:
    """Whether the template marks what the model writes, as far as it shows.

    UserError where a header would be learned: no such marks, and no generation prompt that has it.
    """
    question, answer = {"role": USER, "content": "?"}, {"role": ASSISTANT, "content": "="}
    try:
        prompt = template.render([question], add_generation_prompt=True)
        whole = template.render([question, answer])
    except UserError:  # it wants other messages; those of the data will show
        return False
    if whole.generated:
        return True
    header = whole.text[len(prompt.text) : whole.text.rfind("=")]
    if whole.text.startswith(prompt.text) and header.strip():
        raise UserError(
            f"{template.name}: writes {header.strip()[:40]!r} before a reply but not as its generation prompt, so the "
            "header would be learned; put {% generation %} and {% endgeneration %} around replies in the template"
        )
    return False
