"""What people review: rewritten texts beside their originals, preference pairs, and conversations.

An item is known by a hash of its texts, so that decisions stay with it whatever becomes of the file around it.
"""

import collections
import copy
import dataclasses
import functools
import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from absl import logging

from allam_jax.alignment.chat_files import chat_files, chat_records
from allam_jax.alignment.conversations import FIELDS, BadRow, Messages, conversation_of, pair_of
from allam_jax.corpus.record_formats import Record
from allam_jax.errors import UserError
from allam_jax.files import json_text, sha256_of_json

ORIGINAL, REWRITE, PIECES, PASSED = "original", "rewrite", "pieces", "passed"
Place = tuple[str | int, ...]  # keys and indices that lead to a text in a record


@dataclasses.dataclass(frozen=True)
class Passage:
    """A text with a word that says what it is."""

    label: str
    text: str


@dataclasses.dataclass(frozen=True)
class ReviewItem:
    """What is decided on at a time.

    Attributes:
        record: the row as it was read, in the form in which it goes on.
        left: what is only read.
        labels, places: of the texts on the right, which can be edited: what each is, and where in `record` it lies.
    """

    record: Mapping[str, Any]
    left: tuple[Passage, ...]
    labels: tuple[str, ...]
    places: tuple[Place, ...]

    @functools.cached_property
    def id(self) -> str:
        """A hash of all that is read."""
        return sha256_of_json([[passage.text for passage in self.left], list(self.texts)])[:16]

    @functools.cached_property
    def texts(self) -> tuple[str, ...]:
        """What can be edited."""
        return tuple(_at(self.record, place) for place in self.places)

    @property
    def language(self) -> str:
        """The language that the row states; empty without."""
        language = self.record.get("language")
        return language if isinstance(language, str) else ""

    def with_texts(self, texts: Sequence[str]) -> dict[str, Any]:
        """The record with other texts in these places."""
        record: dict[str, Any] = copy.deepcopy(dict(self.record))
        for (*way, last), text in zip(self.places, texts, strict=True):
            _at(record, way)[last] = text
        return record


def _at(value: Any, place: Iterable[str | int]) -> Any:
    return functools.reduce(operator.getitem, place, value)


def read_items(path: str) -> list[ReviewItem]:
    """The items of the files at a path, each once, in their order.

    Rows have `original` and `rewrite`, or `pieces` of both (what task `rewrite` writes), or are pairs or conversations
    as `conversations.py` knows them. Other rows are left out and counted in the log; UserError if all are.
    """
    items: dict[str, ReviewItem] = {}
    left_out = collections.Counter[str]()
    for record in (record for file in chat_files(path) for record in chat_records(file, every_column=True)):
        try:
            for item in _items_of(record):
                left_out["the same texts again"] += item.id in items
                items.setdefault(item.id, item)
        except BadRow as reason:
            left_out[str(reason)] += 1
    for why, count in (+left_out).most_common():
        logging.warning("%s: %d rows are left out: %s", path, count, why)
    if not items:
        why = ", ".join(f"{count} {reason}" for reason, count in left_out.most_common(3))
        empty = "it is empty; if a review wrote it, nothing has been accepted or edited yet"
        raise UserError(f"{path}: has no rows that can be reviewed ({why or empty})")
    return list(items.values())


def _items_of(record: Record) -> Iterator[ReviewItem]:
    if isinstance(record, str):
        raise BadRow(f"a row {record}")
    try:
        json_text(record).encode()
    except (TypeError, UnicodeEncodeError):  # a table's value that JSON has not, or half of a surrogate pair
        raise BadRow("a value that no JSON can hold") from None
    if record.get(PIECES) is not None:
        rest = {key: value for key, value in record.items() if key != PIECES}
        for number, (original, rewrite) in enumerate(_pieces(record[PIECES])):
            # Where no rewrite has passed the checks, the text is shown as it was, to be rewritten by hand.
            texts = {ORIGINAL: original, REWRITE: original if rewrite is None else rewrite}
            yield _rewrite(rest | {"piece": number, PASSED: rewrite is not None, **texts})
    elif record.get(ORIGINAL) is not None:
        yield _rewrite(record)
    elif record.get("chosen") is not None:
        yield _preference(record)
    else:
        yield _conversation(record)


def _pieces(value: Any) -> Sequence[tuple[str, str | None]]:
    if not isinstance(value, list) or not all(isinstance(piece, list) and len(piece) == 2 for piece in value):
        raise BadRow(f"{PIECES!r} is no list of originals with their rewrites")
    return [tuple(piece) for piece in value]


def _rewrite(record: Mapping[str, Any]) -> ReviewItem:
    for key in (ORIGINAL, REWRITE):
        if not isinstance(record.get(key), str) or not record[key].strip():
            raise BadRow(f"no text in {key!r}")
    return ReviewItem(record, (Passage(ORIGINAL, record[ORIGINAL]),), (REWRITE,), ((REWRITE,),))


def _preference(record: Mapping[str, Any]) -> ReviewItem:
    pair = pair_of(record)
    sides: dict[str, Messages] = {"chosen": pair.chosen, "rejected": pair.rejected}
    answers = [(side, at) for side, messages in sides.items() for at in range(pair.shared, len(messages))]
    return ReviewItem(
        _others(record) | {side: list(map(dict, messages)) for side, messages in sides.items()},
        tuple(Passage(message["role"], message["content"]) for message in pair.chosen[: pair.shared]),
        tuple(f"{side}: {sides[side][at]['role']}" for side, at in answers),
        tuple((side, at, "content") for side, at in answers),
    )


def _conversation(record: Mapping[str, Any]) -> ReviewItem:
    messages, others = conversation_of(record), _others(record)
    return ReviewItem(
        others | {"messages": list(map(dict, messages))},
        tuple(Passage(key, value) for key, value in others.items() if isinstance(value, str) and value.strip()),
        tuple(message["role"] for message in messages),
        tuple(("messages", at, "content") for at in range(len(messages))),
    )


def _others(record: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a record that are no part of its conversation, such as where it comes from."""
    return {key: value for key, value in record.items() if key not in FIELDS}
