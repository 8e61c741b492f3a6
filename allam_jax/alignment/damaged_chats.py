"""Spoils some rows of conversations or pairs, and leaves the others as they are.

Which rows are written, and which are spoilt, follows from a hash of their place and the seed. So a smaller share is a
part of a larger one, and two settings differ in nothing but what they state.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from allam_jax.alignment.conversations import FIELDS, BadRow, conversation_of, pair_of
from allam_jax.alignment.settings import DamageChatsSettings
from allam_jax.errors import UserError
from allam_jax.files import unit_hash

LEAST_ROWS = 10  # fewer rows of a kind are no sample of its effect
NO_WORDS = "…"  # an empty reply: one without any character is refused by every reader
FLIPPED, OTHER_LANGUAGE = "flipped", "other language"
_SCAFFOLD = "### Response:"
_REPEATED_WORDS, _REPEATS = 3, 12

Chat = Mapping[str, Any]


class WrittenRow(NamedTuple):
    """A row that is written, and what has been done to it; an empty kind where it is as it was."""

    record: Chat
    kind: str


def damaged_rows(
    sources: Mapping[str, Sequence[Chat]], *, settings: DamageChatsSettings, seed: int
) -> dict[str, list[WrittenRow]]:
    """Source -> its rows that are written, in order.

    UserError where a share comes to fewer than ten rows, for a row that a kind cannot spoil, and for replies in another
    language without a second source.
    """
    if OTHER_LANGUAGE in settings.kinds and sum(map(bool, sources.values())) < 2:
        raise UserError(
            f"config.damage_chats.kinds: {OTHER_LANGUAGE!r} needs a second source with rows, in another language"
        )
    rows = [(name, number, record) for name, records in sources.items() for number, record in enumerate(records)]
    kept = _first(range(len(rows)), settings.kept, of=len(rows), purpose="kept", seed=seed)
    kinds: dict[int, str] = {}
    for kind in settings.kinds:
        whole = [place for place in kept if place not in kinds]
        kinds |= dict.fromkeys(_first(whole, settings.share, of=len(kept), purpose=kind, seed=seed), kind)
    found: dict[str, list[WrittenRow]] = {name: [] for name in sources}
    others = {
        name: [record for source, records in sources.items() if source != name for record in records]
        for name in (sources if OTHER_LANGUAGE in settings.kinds else ())
    }
    for place in sorted(kept):
        name, number, record = rows[place]
        if kind := kinds.get(place, ""):
            try:
                record = _damaged(record, kind, others=others.get(name, ()), place=place)
            except BadRow as reason:
                raise UserError(
                    f"config.damage_chats.sources.{name}: row {number} cannot be spoilt by {kind!r}: "
                    f"{reason}; leave out such rows or the kind"
                ) from None
        found[name].append(WrittenRow(record, kind))
    return found


def _first(places: Sequence[int], share: float, *, of: int, purpose: str, seed: int) -> Sequence[int]:
    """The first of the places in an order of this purpose: as many as the share of `of` rows."""
    count = round(share * of)
    if count < LEAST_ROWS:
        raise UserError(
            f"config.damage_chats: {share:g} of {of:,} rows ({purpose}) are {count}, which shows no effect: expected "
            f"at least {LEAST_ROWS}; raise the share, or give more rows"
        )
    if count > len(places):
        raise UserError(
            f"config.damage_chats: {share:g} of {of:,} rows ({purpose}) are {count:,}, but the kinds before it leave "
            f"{len(places):,}; lower the share, or name fewer kinds"
        )
    return sorted(places, key=lambda place: unit_hash(f"{seed}/{purpose}/{place}"))[:count]


def _damaged(record: Chat, kind: str, *, others: Sequence[Chat], place: int) -> Chat:
    """The record with this damage; `others` are rows of other sources, of which the place says the first."""
    rest = {name: value for name, value in record.items() if name not in FIELDS}
    if kind == FLIPPED:
        pair = pair_of(record)
        return rest | {"chosen": list(pair.rejected), "rejected": list(pair.chosen)}
    *before, last = conversation_of(record)
    reply = last["content"]
    end = " ".join(reply.split()[-_REPEATED_WORDS:] * _REPEATS)
    spoilt = {
        "empty": lambda: NO_WORDS,
        OTHER_LANGUAGE: lambda: _another_reply(reply, others, place=place),
        "cut": lambda: _first_half(reply),
        "repetition": lambda: f"{reply.rstrip()} {end}",
        "scaffold": lambda: f"{_SCAFFOLD} {reply}",
    }
    return rest | {"messages": [*before, {**last, "content": spoilt[kind]()}]}


def _another_reply(reply: str, others: Sequence[Chat], *, place: int) -> str:
    """A last reply of the others with other words: some, such as numbers, are the same in two languages."""
    for number in range(len(others)):
        try:
            another: str = conversation_of(others[(place + number) % len(others)])[-1]["content"]
        except BadRow as reason:
            raise BadRow(f"in a row of another source, {reason}") from None
        if another.split() != reply.split():
            return another
    raise BadRow("every row of the other source has its reply")


def _first_half(reply: str) -> str:
    """The first half of the words, or of the characters of a single one, as in languages without spaces."""
    ends = [word.end() for word in re.finditer(r"\S+", reply)]
    word = reply.strip()
    return reply[: ends[len(ends) // 2 - 1]] if len(ends) > 1 else word[: len(word) // 2] or NO_WORDS
