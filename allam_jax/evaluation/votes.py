"""Votes of people on pairs of answers: which pair a rater sees next, and the log of what they said.

A vote is a line of a `LineLog`. It is on the disk before the rater is told so: what was not confirmed, the rater's page
sends again. A vote that comes twice counts once.
"""

import collections
import dataclasses
import hashlib
import json
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from allam_jax.corpus.record_formats import json_records
from allam_jax.errors import UserError
from allam_jax.evaluation.line_log import LineLog

Choice = Literal["a", "b", "tie", "both_bad"]
CHOICES: tuple[Choice, ...] = ("a", "b", "tie", "both_bad")
SIDES = ("a", "b")
RESERVED_SECONDS = 900.0  # that a pair waits for the vote of a rater who sees it
_LARGEST_PAIR = 1 << 24  # bytes
_VOTE = f"vote; expected pair, rater, choice ({', '.join(CHOICES)}), left (a or b) and time"
_FIELDS = ("question", "model_a", "answer_a", "model_b", "answer_b")


@dataclasses.dataclass(frozen=True)
class AnswerPair:
    """A question and two answers. A question of several turns is one text."""

    id: str
    domain: str
    question: str
    model_a: str
    answer_a: str
    model_b: str
    answer_b: str


@dataclasses.dataclass(frozen=True)
class Vote:
    """What one rater said of one pair."""

    pair: str
    rater: str
    choice: Choice
    left: str  # which answer stood on the left: a or b
    time: float


def read_pairs(path: str) -> list[AnswerPair]:
    """The pairs of a JSON Lines file; UserError names the first line that is none, or whose id is there twice."""
    pairs: dict[str, AnswerPair] = {}
    for number, record in enumerate(json_records(Path(path), limit=_LARGEST_PAIR), start=1):
        where = f"config.arena.pairs: {path}, line {number}"
        if isinstance(record, str):
            raise UserError(f"{where}: {record}")
        missing = [name for name in _FIELDS if not isinstance(record.get(name), str) or not record[name].strip()]
        if missing:
            raise UserError(f"{where}: no text in field {missing[0]!r}; expected {', '.join(_FIELDS)}")
        if record["model_a"] == record["model_b"]:
            raise UserError(f"{where}: both answers are of {record['model_a']!r}; expected two models")
        name = str(record.get("id", number))
        if name in pairs:
            raise UserError(f"{where}: an earlier line has the id {name!r}; give each its own")
        texts = {field: record[field] for field in _FIELDS}
        pairs[name] = AnswerPair(id=name, domain=str(record.get("domain") or ""), **texts)
    if not pairs:
        raise UserError(f"config.arena.pairs: {path}: holds no pairs")
    return list(pairs.values())


class VoteLog:
    """The votes in a file. Safe for several threads; one process at a time."""

    def __init__(self, path: Path):
        """Opens the file, or makes it. UserError for a line that is no vote."""
        self._log, self._lock = LineLog(path, read=_vote_of, what=_VOTE), threading.Lock()
        self.votes = self._log.found
        self._given = {(vote.rater, vote.pair) for vote in self.votes}

    def add(self, vote: Vote) -> bool:
        """Writes a vote; returns when the disk has it. False if the rater has voted on this pair before."""
        with self._lock:
            if (vote.rater, vote.pair) in self._given:
                return False
            self._log.append(dataclasses.asdict(vote))
            self._given.add((vote.rater, vote.pair))
            self.votes.append(vote)
            return True

    def close(self) -> None:
        """Closes the file."""
        self._log.close()


def _vote_of(value: Any) -> Vote | None:
    """The vote that a line holds; None for a line that is none."""
    try:
        vote = Vote(**value)
    except TypeError:
        return None
    texts = (vote.pair, vote.rater, vote.choice, vote.left)
    known = all(isinstance(text, str) for text in texts) and vote.choice in CHOICES and vote.left in SIDES
    return vote if known and isinstance(vote.time, int | float) else None


def winner(choices: Sequence[Choice]) -> Choice | None:
    """What more than half of the raters said; None if there is no such choice."""
    if not choices:
        return None
    choice, count = collections.Counter(choices).most_common(1)[0]
    return choice if 2 * count > len(choices) else None


@dataclasses.dataclass(frozen=True)
class Rule:
    """Whose votes decide a pair: those of `first` raters, and of up to `more` where these have no majority."""

    first: int
    more: int

    def missing(self, choices: Sequence[Choice]) -> int:
        """Votes that a pair with these still needs."""
        if len(choices) < self.first:
            return self.first - len(choices)
        return int(winner(choices) is None and len(choices) < self.first + self.more)

    def outcome(self, choices: Sequence[Choice]) -> Choice | None:
        """What a pair's votes come to: the majority; a tie where all have voted without one; None while some miss."""
        if self.missing(choices):
            return None
        return winner(choices) or "tie"


class Assignment:
    """Gives each rater pairs in an order of its own. Safe for several threads.

    A pair with the fewest votes missing comes first, so that pairs are finished; among equal ones the order is random,
    by seed and rater. A pair that others are looking at counts as voted on for a while.
    """

    def __init__(self, pairs: Iterable[AnswerPair], log: VoteLog, *, rule: Rule, seed: int):
        self.pairs = {pair.id: pair for pair in pairs}
        self.rule, self._log, self._seed, self._lock = rule, log, seed, threading.Lock()
        self._seen_by: dict[str, dict[str, float]] = collections.defaultdict(dict)  # pair -> rater -> until when

    def choices(self) -> dict[str, list[Choice]]:
        """Pair -> the votes on it, in their order. Votes on pairs that the file no longer has are left out."""
        found: dict[str, list[Choice]] = {name: [] for name in self.pairs}
        for vote in list(self._log.votes):
            if vote.pair in found:
                found[vote.pair].append(vote.choice)
        return found

    def next(self, rater: str) -> AnswerPair | None:
        """The pair that a rater should see now; None if none needs it. Asking again gives the same one."""
        now = time.monotonic()
        with self._lock:
            choices, given = self.choices(), {vote.pair for vote in self._log.votes if vote.rater == rater}
            waiting = []
            for name, pair_choices in choices.items():
                seen = {other for other, until in self._seen_by[name].items() if until > now}
                missing = self.rule.missing(pair_choices)
                if name in given or not missing:
                    continue
                mine = rater in seen
                if mine or missing > len(seen):
                    waiting.append((not mine, missing - len(seen), self._draw(rater, name), name))
            if not waiting:
                return None
            name = min(waiting)[-1]
            self._seen_by[name][rater] = now + RESERVED_SECONDS
            return self.pairs[name]

    def left(self, rater: str, pair: str) -> str:
        """Which answer this rater sees on the left: a or b."""
        return "ab"[self._draw(rater, pair, "side") & 1]

    def vote(self, rater: str, pair: str, said: str) -> bool:
        """Logs what a rater said: left, right, tie or both_bad. False if it was logged before.

        KeyError for an unknown pair, ValueError for another word.
        """
        if pair not in self.pairs:
            raise KeyError(pair)
        left = self.left(rater, pair)
        sides: Mapping[str, Choice] = {
            "left": "a" if left == "a" else "b",
            "right": "b" if left == "a" else "a",
            "tie": "tie",
            "both_bad": "both_bad",
        }
        if said not in sides:
            raise ValueError(f"{said!r}: expected one of {', '.join(sides)}")
        added = self._log.add(Vote(pair, rater, sides[said], left, time.time()))
        with self._lock:
            self._seen_by[pair].pop(rater, None)
        return added

    def progress(self, rater: str) -> dict[str, Any]:
        """How far the rater is, and all are."""
        choices = self.choices()
        return {
            "mine": sum(vote.rater == rater for vote in self._log.votes),
            "pairs": len(choices),
            "decided": sum(self.rule.outcome(of_pair) is not None for of_pair in choices.values()),
        }

    def _draw(self, *named: str) -> int:
        """A number that depends on the seed and these names only."""
        text = json.dumps([self._seed, *named], ensure_ascii=False)
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")
