"""Lays out (context, continuation) pairs in rows, so that what they share is computed once.

Pairs of one context become an *item*: the context, and a branch for each continuation. Items whose contexts begin alike
share a *trunk*, such as the worked examples of a few-shot prompt. Which beginnings become trunks is the choice that
saves most tokens, among all that the sorted contexts have (their tree of longest common prefixes).

The last token of a continuation is predicted, but never read. So a continuation of one token, such as the letter of a
choice, costs no token at all.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from allam_jax.evaluation.program_shapes import rounded, rows_at_once

Ids = tuple[int, ...]


class Pair(NamedTuple):
    """A context of at least one token, and a continuation of at least one."""

    context: Ids
    continuation: Ids


class Score(NamedTuple):
    """Natural log-probability of a continuation, and whether each of its tokens is the likeliest one."""

    logprob: float
    greedy: bool


@dataclasses.dataclass(frozen=True)
class Item:
    """A context and its continuations, each with the number of its pair."""

    context: np.ndarray
    continuations: tuple[tuple[int, Ids], ...]

    def length(self, trunk: int) -> int:
        """Tokens in a row behind a trunk of so many."""
        return len(self.context) - trunk + sum(len(ids) - 1 for _, ids in self.continuations)


@dataclasses.dataclass(frozen=True)
class Group:
    """Items that share their first `trunk` tokens; 0: they share none."""

    items: tuple[Item, ...]
    trunk: int

    @property
    def trunk_ids(self) -> np.ndarray:
        """The tokens of the trunk."""
        return self.items[0].context[: self.trunk]


class RowOfItems(NamedTuple):
    """Items that lie in one row."""

    group: Group
    items: list[Item]
    length: int


class Batch(NamedTuple):
    """Rows that are computed together, filled up to `size` rows of `length` tokens."""

    rows: Sequence[RowOfItems]
    size: int
    length: int


class Targets(NamedTuple):
    """What is predicted in a batch of rows: where (row * T + place), which id, and for which pair."""

    places: list[int]
    ids: list[int]
    pairs: list[int]


def items_of(pairs: Sequence[Pair]) -> list[Item]:
    """One item for each context, sorted by it."""
    by_context: dict[Ids, list[tuple[int, Ids]]] = {}
    for number, (context, continuation) in enumerate(pairs):
        by_context.setdefault(context, []).append((number, continuation))
    return [Item(np.array(context, np.int32), tuple(by_context[context])) for context in sorted(by_context)]


def groups_of(items: Sequence[Item], *, cost: int) -> list[Group]:
    """Sorted items, cut into groups with trunks; a group of its own is worth it if it saves more than `cost` tokens."""
    found = []
    for first, last, trunk in _best_trunks(_common(items), cost=cost):
        found.append(Group(tuple(items[first : last + 1]), trunk))
    in_group = {id(item) for group in found for item in group.items}
    alone = tuple(item for item in items if id(item) not in in_group)
    return [*found, Group(alone, 0)] if alone else found


def rows_of(group: Group, *, capacity: int) -> list[RowOfItems]:
    """The items of a group in rows of up to `capacity` tokens, longest first, each in the fullest row with room."""
    rows: list[RowOfItems] = []
    for item in sorted(group.items, key=lambda item: -item.length(group.trunk)):
        length = item.length(group.trunk)
        open_rows = range(max(0, len(rows) - _OPEN_ROWS), len(rows))
        fitting = [i for i in open_rows if rows[i].length + length <= capacity]
        if fitting:
            best = max(fitting, key=lambda i: rows[i].length)
            rows[best] = RowOfItems(group, [*rows[best].items, item], rows[best].length + length)
        else:
            rows.append(RowOfItems(group, [item], length))
    return rows


def write_row(row: RowOfItems, number: int, *, arrays: Sequence[np.ndarray], targets: Targets) -> None:
    """Writes a row of a batch.

    Args:
        row: the items.
        number: of the row in the batch.
        arrays: tokens, and the `Parts` of `model/branching.py` in their order, each [B, T]; zeros so far.
        targets: gets what is predicted in this row.
    """
    T = arrays[0].shape[1]
    at = block = 0

    def write(tokens: np.ndarray, *, context: int, behind: int, position: int) -> None:
        nonlocal at, block
        block += 1
        here = slice(at, at + len(tokens))
        values = (tokens, block, context, behind, np.arange(position, position + len(tokens)))
        for array, value in zip(arrays, values, strict=True):
            array[number, here] = value
        at = here.stop

    def predict(ids: Ids, pair: int, first: int, others: int) -> None:
        """The first id follows place `first`, the others the places from `others` on."""
        targets.places.extend(number * T + place for place in (first, *range(others, others + len(ids) - 1)))
        targets.ids.extend(ids)
        targets.pairs.extend([pair] * len(ids))

    for item in row.items:
        own = item.context[row.group.trunk :]
        context, position = block + 1, row.group.trunk
        if len(item.continuations) == 1:  # one text: no branch
            ((pair, ids),) = item.continuations
            predict(ids, pair, at + len(own) - 1, at + len(own))
            write(np.concatenate([own, np.array(ids[:-1], np.int32)]), context=context, behind=0, position=position)
            continue
        write(own, context=context, behind=0, position=position)
        end = at - 1
        for pair, ids in item.continuations:
            predict(ids, pair, end, at)
            if len(ids) > 1:
                write(np.array(ids[:-1], np.int32), context=0, behind=context, position=len(item.context))


def batches_of(groups: Sequence[Group], *, row_tokens: int, places: int, attention: float) -> list[Batch]:
    """The items of some groups in batches of rows, longest rows first.

    Rows share a batch as long as it has up to `places` tokens with padding. How many tokens short items share is what
    costs least: long rows have less padding, but each token meets more others.

    Args:
        groups: with trunks of similar lengths, or without.
        row_tokens: of a row at most, unless one item is longer.
        places: tokens of a batch.
        attention: tokens whose attention costs a token as much as all else does.
    """
    trunk = max(group.trunk for group in groups)

    def cost(batches: list[Batch]) -> float:
        return sum(batch.size * batch.length * (1 + (trunk + batch.length) / attention) for batch in batches)

    capacities = {row_tokens, *(size for size in _ROW_LENGTHS if size < row_tokens)}
    return min((_batches(groups, capacity, places) for capacity in sorted(capacities)), key=cost)


def _batches(groups: Sequence[Group], capacity: int, places: int) -> list[Batch]:
    rows = sorted((row for group in groups for row in rows_of(group, capacity=capacity)), key=lambda row: -row.length)
    batches, at = [], 0
    while at < len(rows):
        length = rounded(rows[at].length)
        count, size = rows_at_once(len(rows) - at, length, most=max(1, places // length))
        batches.append(Batch(rows[at : at + count], size, length))
        at += count
    return batches


_ROW_LENGTHS = (128, 192, 256, 384, 512, 768)  # that short items may share
_OPEN_ROWS = 32  # an item goes into one of the last rows: with all of them, many short items would take long


def _common(items: Sequence[Item]) -> list[int]:
    """Tokens that neighbours share; at least one of each context is left to its row, where its answer is predicted."""
    found = []
    for a, b in zip(items, items[1:], strict=False):
        most = min(len(a.context), len(b.context)) - 1
        differ = np.flatnonzero(a.context[:most] != b.context[:most])
        found.append(int(differ[0]) if len(differ) else most)
    return found


@dataclasses.dataclass
class _Interval:
    """Neighbours that share `common` tokens: a node of the tree, and the best groups within it."""

    common: int
    first: int
    saved: int = 0  # tokens, by the groups of its children
    groups: list[tuple[int, int, int]] = dataclasses.field(default_factory=list)

    def closed(self, last: int, *, cost: int) -> "_Interval":
        """With one group for all, where that saves more than the groups within."""
        own = self.common * (last - self.first) - cost
        if own > self.saved:
            self.saved, self.groups = own, [(self.first, last, self.common)]
        return self

    def take(self, child: "_Interval") -> None:
        self.saved += child.saved
        self.groups += child.groups


def _best_trunks(common: Sequence[int], *, cost: int) -> Iterable[tuple[int, int, int]]:
    """(first, last, trunk) of the disjoint groups that save most: each node of the tree, or what is best below it."""
    stack = [_Interval(0, 0)]
    for last, shared in enumerate([*common, -1]):
        first, child = last, None
        while stack and shared < stack[-1].common:
            child = stack.pop().closed(last, cost=cost)
            first = child.first
            if stack and shared <= stack[-1].common:
                stack[-1].take(child)
                child = None
        if stack and shared > stack[-1].common:
            stack.append(_Interval(shared, first))
            if child is not None:
                stack[-1].take(child)
        if shared < 0:
            return child.groups if child is not None else []
    return []
