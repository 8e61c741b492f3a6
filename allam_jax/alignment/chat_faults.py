"""What is wrong with one conversation or one pair, as far as its own text shows."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from allam_jax.alignment.answer_grid import similarity
from allam_jax.alignment.conversations import ASSISTANT, USER, BadRow, Messages, conversation_of, is_learned, pair_of
from allam_jax.alignment.settings import CHAT_FAULTS
from allam_jax.alignment.text_measures import (
    asks_for_another_language,
    differ_in_language,
    ends_as_prose,
    has_endless_run,
    is_request,
    lexical_diversity,
    repeated_share,
    smells_translated,
)
from allam_jax.corpus.model_phrases import scaffold_in
from allam_jax.corpus.words import bare_words

LONG_REPLY = 15  # words: shorter replies need no sentence
_REPEATED, _LEAST_REPEATED = 0.5, 20  # share of 4-grams, in replies of so many words

NOT_READ, EMPTY, SWAPPED, LANGUAGE, CUT, REPETITION = CHAT_FAULTS[:6]
SCAFFOLD, DUPLICATE, NEAR, EVALUATION, SIDES_ALIKE, TRANSLATED = CHAT_FAULTS[6:]

# Reasons of `conversations.py` that are one of these faults.
_OF_REASON = {
    "empty content": EMPTY,
    "begins with a reply": SWAPPED,
    "ends without a reply": SWAPPED,
    "chosen and rejected are equal": SIDES_ALIKE,
}


@dataclasses.dataclass(frozen=True)
class Examined:
    """A record, looked at alone.

    Attributes:
        faults: fault -> what shows it.
        text: all messages, by which repeats are found; empty if the record cannot be read.
        reply_words: words of each reply; of a pair, of the chosen side.
        rejected_words: words of what is rejected; 0 for a conversation.
        diversity: `lexical_diversity` of the replies.
        ends: for each long reply whether it ends as prose.
    """

    faults: dict[str, str]
    text: str = ""
    reply_words: tuple[int, ...] = ()
    rejected_words: int = 0
    diversity: float | None = None
    ends: tuple[bool, ...] = ()


def examine(record: Mapping[str, Any] | str, *, most_similar: float) -> Examined:
    """Looks at a record: a conversation, or a pair if it has two sides; a str says why it could not be read.

    `most_similar` is the share of word pairs from which the sides of a pair are alike.
    """
    try:
        if isinstance(record, str):
            raise BadRow(record)
        if record.get("chosen") is None or record.get("rejected") is None:
            return _conversation(conversation_of(record))
        return _pair(record, most_similar=most_similar)
    except BadRow as reason:
        return Examined({_OF_REASON.get(str(reason), NOT_READ): str(reason)})


def _conversation(messages: Messages) -> Examined:
    replies = [message["content"] for message in messages if message["role"] == ASSISTANT]
    words = [bare_words(reply) for reply in replies]
    faults = _faults_of(messages)
    long = [reply for reply, own in zip(replies, words, strict=True) if len(own) >= LONG_REPLY]
    return Examined(
        faults,
        text="\n".join(str(message["content"]) for message in messages),
        reply_words=tuple(map(len, words)),
        diversity=lexical_diversity([word for own in words for word in own]),
        ends=tuple(ends for ends in map(ends_as_prose, long) if ends is not None),
    )


def _pair(record: Mapping[str, Any], *, most_similar: float) -> Examined:
    pair = pair_of(record)
    chosen, rejected = (
        "\n".join(message["content"] for message in side[pair.shared :] if message["role"] == ASSISTANT)
        for side in (pair.chosen, pair.rejected)
    )
    found = _conversation(pair.chosen)
    faults = dict(found.faults)
    if similarity(chosen, rejected) >= most_similar:
        faults[SIDES_ALIKE] = rejected
    if differ_in_language(chosen, rejected):
        faults.setdefault(LANGUAGE, rejected)
    return dataclasses.replace(
        found, faults=faults, text=f"{found.text}\n{rejected}", rejected_words=len(bare_words(rejected))
    )


def _faults_of(messages: Messages) -> dict[str, str]:
    found: dict[str, str] = {}
    asked = ""
    swapped = 0
    for message in messages:
        text = message["content"]
        if message["role"] == USER:
            asked = text
        if not is_learned(message) or message.get("tool_calls"):
            continue
        for fault, shown in _faults_of_reply(text, asked=asked).items():
            found.setdefault(fault, shown)
        swapped += is_request(text) - is_request(asked)
    if swapped > 0:
        found[SWAPPED] = f"the user writes {asked!r}, the model {messages[-1]['content']!r}"
    return found


def _faults_of_reply(text: str, *, asked: str) -> dict[str, str]:
    words = bare_words(text)
    found = {}
    if not words:
        found[EMPTY] = text
    if scaffold := scaffold_in(text):
        found[SCAFFOLD] = scaffold
    if has_endless_run(text) or (len(words) >= _LEAST_REPEATED and repeated_share(words) >= _REPEATED):
        found[REPETITION] = text
    if smells_translated(text):
        found[TRANSLATED] = text
    if not asks_for_another_language(asked) and differ_in_language(asked, text):
        found[LANGUAGE] = text
    return found


def shown(faults: Mapping[str, str]) -> dict[str, str]:
    """The faults in their order, with short texts."""
    return {fault: " ".join(faults[fault].split())[:200] for fault in CHAT_FAULTS if fault in faults}
