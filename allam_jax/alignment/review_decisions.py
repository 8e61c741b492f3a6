"""What people said of the items that they reviewed, what comes of it, and how far they agree."""

import collections
import dataclasses
import functools
import hashlib
import itertools
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from allam_jax.alignment.review_items import ReviewItem
from allam_jax.evaluation.line_log import LineLog, read_lines
from allam_jax.evaluation.ratings import cohen_kappa

ACCEPT, EDIT, REJECT = VERDICTS = ("accept", "edit", "reject")
ACCEPTED, EDITED, REJECTED, CONFLICT, UNDECIDED = OUTCOMES = (
    "accepted",
    "edited",
    "rejected",
    "conflict",
    "undecided",
)
_LONGEST_NOTE = 2000  # characters
_DECISION = f"decision; expected item, reviewer, verdict ({', '.join(VERDICTS)}), texts, flags, note and time"


@dataclasses.dataclass(frozen=True)
class Decision:
    """What one reviewer said of one item. A later one of the same reviewer takes its place.

    Attributes:
        item: its id.
        verdict: accept, edit or reject.
        texts: of an edit, all texts that can be edited; otherwise none.
        flags: the guidelines that the item breaks as it was shown.
        guidelines: name and version of what the reviewer was shown.
        time: seconds since 1970.
    """

    item: str
    reviewer: str
    verdict: str
    texts: tuple[str, ...]
    flags: tuple[str, ...]
    note: str
    guidelines: str
    time: float


def decision_of(value: Any) -> Decision | None:
    """The decision that a line of a file holds; None for a line that is none."""
    try:
        found = Decision(**{**value, "texts": tuple(value["texts"]), "flags": tuple(value["flags"])})
    except (KeyError, TypeError):
        return None
    texts = (found.item, found.reviewer, found.verdict, found.note, found.guidelines, *found.texts, *found.flags)
    known = all(isinstance(text, str) for text in texts) and isinstance(found.time, int | float)
    return found if known and found.verdict in VERDICTS and bool(found.texts) == (found.verdict == EDIT) else None


class Review:
    """Items under review, and the file of decisions on them. Safe for several threads.

    Everybody gets the items in the same order, but begins elsewhere in it, so that several people at once do not meet.
    """

    def __init__(
        self,
        items: Sequence[ReviewItem],
        path: Path,
        *,
        others: Sequence[Path] = (),
        reviewers: int = 1,
        arbiter: str = "",
        rules: Sequence[str] = (),
        guidelines: str = "",
    ):
        """Opens the file of decisions, or makes it.

        Args:
            items: in their order.
            path: of the file.
            others: files of other machines, whose decisions count too.
            reviewers: an item with so many decisions is given to nobody else,
            arbiter: except to this one, if it is a conflict.
            rules: names of the guidelines, which a decision can flag.
            guidelines: their name and version.
        """
        self.items = {item.id: item for item in items}
        self._order, self._reviewers, self._arbiter = list(self.items), reviewers, arbiter
        self._rules, self._guidelines = rules, guidelines
        self._log, self._lock = LineLog(path, read=decision_of, what=_DECISION), threading.Lock()
        found = [*self._log.found]
        for other in others:
            found += read_lines(other, read=decision_of, what=_DECISION)
        self._latest: dict[str, dict[str, Decision]] = {name: {} for name in self.items}
        for decision in sorted(found, key=lambda decision: decision.time):
            if decision.item in self._latest:
                self._latest[decision.item][decision.reviewer] = decision

    def decisions(self) -> dict[str, dict[str, Decision]]:
        """Item -> reviewer -> the latest decision. Decisions on other items are left out."""
        with self._lock:
            return {name: dict(of_item) for name, of_item in self._latest.items()}

    def decide(self, said: Mapping[str, Any], *, reviewer: str) -> None:
        """Writes a decision; returns when the disk has it.

        Args:
            said: as the page sends it: item, verdict (accept or reject), texts, flags and note. Accepted with other
                texts than it has, an item is edited.
            reviewer: who said it.

        Raises:
            KeyError: there is no such item.
            ValueError: what was said is no decision.
            OSError: the disk does not take it.
        """
        item = self.items[str(said.get("item"))]
        verdict, texts, flags, note = (said.get(name) for name in ("verdict", "texts", "flags", "note"))
        if verdict not in (ACCEPT, REJECT):
            raise ValueError(f"verdict {verdict!r}: expected {ACCEPT} or {REJECT}")
        if not isinstance(texts, list) or len(texts) != len(item.texts):
            raise ValueError(f"texts: expected a list of {len(item.texts)}")
        if not all(isinstance(text, str) and text.strip() for text in texts):
            raise ValueError("texts: one is empty; reject the item instead")
        if not isinstance(flags, list) or not set(map(str, flags)) <= set(self._rules):
            raise ValueError(f"flags: expected some of {', '.join(self._rules)}")
        if not isinstance(note, str) or len(note) > _LONGEST_NOTE:
            raise ValueError(f"note: expected a text of at most {_LONGEST_NOTE} characters")
        edited = verdict == ACCEPT and tuple(texts) != item.texts
        decision = Decision(
            item.id,
            reviewer,
            EDIT if edited else verdict,
            tuple(texts) if edited else (),
            tuple(rule for rule in self._rules if rule in flags),
            note.strip(),
            self._guidelines,
            time.time(),
        )
        with self._lock:
            self._log.append(dataclasses.asdict(decision))
            self._latest[item.id][reviewer] = decision

    def view(self, reviewer: str, at: int | None) -> dict[str, Any]:
        """What a reviewer sees at a place in their order; None: at the first place that waits for them."""
        decisions, number = self.decisions(), len(self._order)
        start = int.from_bytes(hashlib.blake2b(reviewer.encode(), digest_size=8).digest()) % number
        order = self._order[start:] + self._order[:start]
        waiting = (place for place, name in enumerate(order) if self._waits(name, decisions[name], reviewer=reviewer))
        place = next(waiting, None) if at is None else at % number
        mine = sum(reviewer in of_item for of_item in decisions.values())
        view: dict[str, Any] = {"place": place, "items": number, "mine": mine, "item": None}
        if place is not None:
            item, own = self.items[order[place]], decisions[order[place]].get(reviewer)
            view["item"] = {
                "id": item.id,
                "language": item.language,
                "left": [dataclasses.asdict(passage) for passage in item.left],
                "right": [{"label": label, "text": text} for label, text in zip(item.labels, item.texts, strict=True)],
                "decision": own and dataclasses.asdict(own),
            }
        return view

    def outcomes(self) -> list[tuple[ReviewItem, "Outcome"]]:
        """Every item with what the decisions on it come to."""
        decisions = self.decisions()
        return [(item, self._outcome(name, decisions[name])) for name, item in self.items.items()]

    def _outcome(self, name: str, decisions: Mapping[str, Decision]) -> "Outcome":
        return outcome_of(self.items[name], decisions.values(), arbiter=self._arbiter)

    def _waits(self, name: str, decisions: Mapping[str, Decision], *, reviewer: str) -> bool:
        if reviewer in decisions:
            return False
        if len(decisions) < self._reviewers:
            return True
        return reviewer == self._arbiter and self._outcome(name, decisions).said == CONFLICT

    def close(self) -> None:
        """Closes the file of decisions."""
        self._log.close()


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What the decisions on an item come to. `texts` are those to go on with, of an accepted or edited one."""

    said: str
    texts: tuple[str, ...]
    decisions: tuple[Decision, ...]


def outcome_of(item: ReviewItem, decisions: Iterable[Decision], *, arbiter: str) -> Outcome:
    """The decision of the arbiter, if there is one; otherwise what all say, and a conflict where only some reject.

    Of several accepted texts the one that was edited last counts.
    """
    every = tuple(sorted(decisions, key=lambda decision: decision.time))
    if not every:
        return Outcome(UNDECIDED, (), ())
    counted = [decision for decision in every if decision.reviewer == arbiter] or every
    rejected = {decision.verdict == REJECT for decision in counted}
    if rejected == {True}:
        return Outcome(REJECTED, (), every)
    if len(rejected) == 2:
        return Outcome(CONFLICT, (), every)
    edits = [decision.texts for decision in counted if decision.verdict == EDIT]
    return Outcome(EDITED, edits[-1], every) if edits else Outcome(ACCEPTED, item.texts, every)


def agreements(decisions: Iterable[Mapping[str, Decision]], *, rules: Sequence[str]) -> list[dict[str, Any]]:
    """For each two reviewers, of the items that both decided on: how often they agree, and Cohen's kappa.

    A row for the verdicts, one for whether the item is taken at all, and one for each guideline that they may flag.
    """
    both = collections.defaultdict[tuple[str, str], list[tuple[Decision, Decision]]](list)
    for of_item in decisions:
        for one, other in itertools.combinations(sorted(of_item), 2):
            both[one, other].append((of_item[one], of_item[other]))
    asked: dict[str, Callable[[Decision], str | bool]] = {
        "verdict": lambda decision: decision.verdict,
        "taken or rejected": lambda decision: decision.verdict == REJECT,
        **{f"flag: {rule}": functools.partial(_flagged, rule) for rule in rules},
    }
    rows = []
    for (one, other), pairs in sorted(both.items()):
        for name, of in asked.items():
            first, second = [[of(decision) for decision in side] for side in zip(*pairs, strict=True)]
            agreed = sum(a == b for a, b in zip(first, second, strict=True)) / len(pairs)
            rows.append({"reviewers": f"{one}, {other}", "of": name, "items": len(pairs), "agreement": agreed}
                        | {"kappa": cohen_kappa(first, second)})  # fmt: skip
    return rows


def _flagged(rule: str, decision: Decision) -> bool:
    return rule in decision.flags
