"""Conversations and preference pairs from the records of public datasets, checked one by one.

Three shapes are known, and their mixtures: OpenAI's (`messages` with `role` and `content`), ShareGPT's
(`conversations` with `from` and `value`) and Alpaca's (`instruction`, `input`, `output`). A pair has `chosen` and
`rejected`: whole conversations, or answers to a `prompt`. Roles have many names, Arabic ones among them.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from allam_jax.corpus.normalise import without_marks
from allam_jax.corpus.record_formats import Unreadable

Messages = tuple[Mapping[str, Any], ...]

SYSTEM, USER, ASSISTANT, TOOL = "system", "user", "assistant", "tool"

_NAMES = {
    SYSTEM: ("developer", "instructions", "النظام", "نظام", "تعليمات"),
    USER: ("human", "prompter", "person", "المستخدم", "مستخدم", "إنسان", "الإنسان", "بشري", "السائل", "سائل"),
    ASSISTANT: ("gpt", "bot", "model", "chatgpt", "ai", "chatbot", "المساعد", "مساعد", "روبوت", "النموذج", "نموذج"),
    TOOL: ("function", "ipython", "observation", "أداة", "الأداة"),
}
ROLES = {name: role for role, names in _NAMES.items() for name in (role, *names)}

# Names of one thing in public data; the first that a record has counts.
_CONVERSATION = ("messages", "conversations", "conversation", "dialogue", "turns")
_ROLE, _CONTENT = ("role", "from", "speaker", "author"), ("content", "value", "text")
_QUESTION, _ANSWER = ("instruction", "prompt", "question", "query"), ("output", "response", "completion", "answer")
_CHOSEN, _REJECTED = "chosen", "rejected"
NOT_LEARNED = "no reply is to be learned"
_LEARNED = ("weight", "train", "loss")  # OpenAI's, axolotl's and ms-swift's words for whether a reply is learned
FIELDS = (*_CONVERSATION, *_QUESTION, *_ANSWER, _CHOSEN, _REJECTED, "input", "system", "history")

_FOLLOWS = {  # role -> those that may come next
    "": {SYSTEM, USER},
    SYSTEM: {USER},
    USER: {ASSISTANT},
    ASSISTANT: {USER, TOOL},
    TOOL: {TOOL, ASSISTANT},
}


class BadRow(Exception):
    """Why a record is no conversation: a reason without the record's own words, so that equal ones can be counted."""


@dataclasses.dataclass(frozen=True)
class Pair:
    """Two conversations with the same beginning: the better and the worse one.

    Attributes:
        shared: the messages that both begin with; their replies are not learned.
        chosen, rejected: the whole conversations.
    """

    shared: int
    chosen: Messages
    rejected: Messages


def conversation_of(record: Mapping[str, Any]) -> Messages:
    """The messages of a record, with standard roles; BadRow where they are no conversation with a reply."""
    return _checked(_messages_of(record))


def pair_of(record: Mapping[str, Any]) -> Pair:
    """The pair of a record; BadRow where it has none, or where its sides do not differ or do not begin alike."""
    for name in (_CHOSEN, _REJECTED):
        if record.get(name) is None:
            raise BadRow(f"no field {name!r}")
    chosen, rejected = (_side(record, name) for name in (_CHOSEN, _REJECTED))
    if chosen == rejected:
        raise BadRow("chosen and rejected are equal")
    shared = 0
    while shared < min(len(chosen), len(rejected)) and chosen[shared] == rejected[shared]:
        shared += 1
    if not any(message["role"] == USER for message in chosen[:shared]):
        raise BadRow("chosen and rejected answer different prompts")
    for side in (chosen, rejected):
        if not any(message["role"] == ASSISTANT for message in side[shared:]):
            raise BadRow("one side is the beginning of the other")
    return Pair(shared, chosen, rejected)


def number_of_replies(messages: Sequence[Mapping[str, Any]]) -> int:
    """How many messages are the model's."""
    return sum(message["role"] == ASSISTANT for message in messages)


def is_learned(message: Mapping[str, Any]) -> bool:
    """Whether a message is a reply that its data let a model learn: none of `weight`, `train` and `loss` is 0 or false.

    BadRow for values that are neither 0 nor 1.
    """
    given = [message[name] for name in _LEARNED if _is_given(message.get(name))]
    if not all(isinstance(value, int | float) and value in (0, 1) for value in given):
        raise BadRow("a reply whose weight is neither 0 nor 1")
    return message["role"] == ASSISTANT and all(given)


def _messages_of(record: Mapping[str, Any]) -> list[Any]:
    name, listed = _first(record, _CONVERSATION)
    if name:
        if not isinstance(listed, list):
            raise BadRow(f"{name!r} is no list of messages")
        return [*_system_of(record), *listed]
    question, answer = _first(record, _QUESTION), _first(record, _ANSWER)
    if not question[0] or not answer[0]:
        raise BadRow("no conversation: it has neither messages, nor conversations, nor a question with an answer")
    prompt = _prompt_messages(record, question[1])
    return [*prompt, *(answer[1] if isinstance(answer[1], list) else [_message(ASSISTANT, answer[1])])]


def _prompt_messages(record: Mapping[str, Any], question: Any) -> list[Any]:
    """The messages before an answer: a system text, earlier turns, and the question with Alpaca's `input` below."""
    found = _system_of(record)
    history = record.get("history")
    if not _is_given(history):
        history = []
    if isinstance(question, list):
        if history:  # whether the list holds the same turns, nothing says
            raise BadRow("'history' beside a prompt of messages")
        return [*found, *question]
    if not isinstance(history, list):
        raise BadRow("'history' is no list of questions with answers")
    for turn in history:
        if not isinstance(turn, list) or len(turn) != 2:
            raise BadRow("'history' is no list of questions with answers")
        found += [_message(USER, turn[0]), _message(ASSISTANT, turn[1])]
    more = record.get("input")
    both = f"{question}\n\n{more}" if isinstance(more, str) and more.strip() and isinstance(question, str) else question
    return [*found, _message(USER, both)]


def _side(record: Mapping[str, Any], side: str) -> Messages:
    value = record[side]
    question = _first(record, (*_QUESTION, *_CONVERSATION))[1]
    prompt = _system_of(record) if question is None else _prompt_messages(record, question)
    if isinstance(value, Mapping):
        value = [value]
    if isinstance(value, list):
        if not _begins_as(value, SYSTEM, USER):
            return _checked([*prompt, *value])
        system = prompt[:1] if _begins_as(prompt, SYSTEM) else []
        if system and _begins_as(value, SYSTEM) and _standard(system[0]) == _standard(value[0]):
            system = []
        return _checked([*system, *value])
    if question is None:
        raise BadRow(f"{side!r} is a text, and there is no prompt")
    return _checked([*prompt, _message(ASSISTANT, value)])


def _begins_as(messages: Sequence[Any], *roles: str) -> bool:
    return bool(messages) and isinstance(messages[0], Mapping) and _role(messages[0]) in roles


def _is_given(value: Any) -> bool:
    """Whether a field has a value: neither nothing, nor NaN, by which tables say so, nor an empty text."""
    return value is not None and value == value and not (isinstance(value, str) and not value.strip())


def _system_of(record: Mapping[str, Any]) -> list[Any]:
    """The message of a record's own system text, if it has one."""
    system = record.get("system")
    return [_message(SYSTEM, system)] if _is_given(system) else []


def _first(record: Mapping[str, Any], names: Iterable[str]) -> tuple[str, Any]:
    return next(((name, record[name]) for name in names if record.get(name) is not None), ("", None))


def _message(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


def _checked(messages: Sequence[Any]) -> Messages:
    """Messages with standard roles and texts, which alternate and end with a reply."""
    found = [_standard(message) for message in messages]
    if not number_of_replies(found):
        raise BadRow("no reply")
    before = ""
    for message in found:
        role = message["role"]
        if role not in _FOLLOWS[before]:
            raise BadRow(_wrong_order(before, role))
        before = role
    if before != ASSISTANT:
        raise BadRow("ends without a reply")
    return tuple(found)


def _wrong_order(before: str, role: str) -> str:
    if role == SYSTEM:
        return "a system message in the middle"
    return "begins with a reply" if before in ("", SYSTEM) else "roles do not alternate"


def _role(message: Mapping[str, Any]) -> str:
    """The standard name of a message's role; empty for an unknown one."""
    name = _first(message, _ROLE)[1]
    return ROLES.get(without_marks(name).strip().strip("<|>:").casefold(), "") if isinstance(name, str) else ""


def _standard(message: Any) -> Mapping[str, Any]:
    if not isinstance(message, Mapping):
        raise BadRow("a message is no object")
    name, role = _first(message, _ROLE)
    if not name:
        raise BadRow("a message without role")
    if not (standard := _role(message)):
        raise BadRow(f"unknown role {str(role)[:20]!r}")
    content_name, content = _first(message, _CONTENT)
    rest = {str(key): value for key, value in message.items() if key not in (name, content_name) and value is not None}
    calls = standard == ASSISTANT and bool(rest.get("tool_calls"))
    text = "" if content is None and calls else _text(content)
    if not text.strip():  # most templates write no calls: what would be learned is the end of a turn alone
        raise BadRow("a reply of tool calls without text" if calls else "empty content")
    found = _message(standard, text) | rest
    if standard == ASSISTANT:
        is_learned(found)
    return found


def _text(content: Any) -> str:
    """A text, also from parts as OpenAI's API has them."""
    if isinstance(content, list):
        if not all(_is_text(part) for part in content):
            raise BadRow("content with parts that are no text")
        content = "".join(part["text"] for part in content)
    if content is None:
        raise BadRow("empty content")
    if isinstance(content, Unreadable):
        raise BadRow(f"content {content}")
    if not isinstance(content, str):
        raise BadRow("content that is no text")
    try:
        content.encode()
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON can spell as an escape
        raise BadRow("content with invalid Unicode") from None
    return content


def _is_text(part: Any) -> bool:
    """Whether a part of a content is a text; tables give an image a text of nothing."""
    return isinstance(part, Mapping) and isinstance(part.get("text"), str) and "text" in str(part.get("type") or "text")
