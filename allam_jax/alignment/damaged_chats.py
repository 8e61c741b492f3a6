"""Spoils some rows of conversations or pairs, and leaves the others as they are.

Which rows are written, and which are spoilt, follows from a hash of their place and the seed. So a smaller share is a
part of a larger one, and two settings differ in nothing but what they state.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from allam_jax.alignment.conversations import ASSISTANT, BadRow, conversation_of, pair_of
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
    if OTHER_LANGUAGE in settings.kinds and len(sources) < 2:
        raise UserError(f"config.damage_chats.kinds: {OTHER_LANGUAGE!r} needs a second source, in another language")
    rows = [(name, record) for name, records in sources.items() for record in records]
    kept = _first(range(len(rows)), settings.kept, of=len(rows), purpose="kept", seed=seed)
    kinds: dict[int, str] = {}
    for kind in settings.kinds:
        whole = [place for place in kept if place not in kinds]
        kinds |= dict.fromkeys(_first(whole, settings.share, of=len(kept), purpose=kind, seed=seed), kind)
    found: dict[str, list[WrittenRow]] = {name: [] for name in sources}
    for place in sorted(kept):
        name, record = rows[place]
        kind = kinds.get(place, "")
        if kind:
            others = [other for source, other in rows if source != name] if kind == OTHER_LANGUAGE else [record]
            try:
                record = _damaged(record, kind, other=others[place % len(others)])
            except BadRow as reason:
                raise UserError(
                    f"config.damage_chats.sources.{name}: a row that {kind!r} cannot spoil: {reason}"
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
    return sorted(places, key=lambda place: unit_hash(f"{seed}/{purpose}/{place}"))[:count]


def _damaged(record: Chat, kind: str, *, other: Chat) -> Chat:
    """The record with this damage; `other` is a row of another source."""
    if kind == FLIPPED:
        pair = pair_of(record)
        return {"chosen": list(pair.rejected), "rejected": list(pair.chosen)}
    *before, last = conversation_of(record)
    reply = last["content"]
    words = reply.split()
    spoilt = {
        "empty": NO_WORDS,
        OTHER_LANGUAGE: conversation_of(other)[-1]["content"],
        "cut": " ".join(words[: max(1, len(words) // 2)]),
        "repetition": " ".join(words + words[-_REPEATED_WORDS:] * _REPEATS),
        "scaffold": f"{_SCAFFOLD} {reply}",
    }
    return {"messages": [*before, {"role": ASSISTANT, "content": spoilt[kind]}]}
