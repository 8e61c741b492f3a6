"""Finds the documents that repeat others: by equal keys, and as clusters of near-duplicates.

All functions take and return arrays. A document is a row, and rows are numbered through all parts of the corpus. Each
group of duplicates keeps one row, chosen by a policy. Where the policy has no preference, the first row stays, so that
the result does not depend on how the work was divided.
"""

import dataclasses
import itertools
from collections.abc import Callable, Sequence

import numpy as np
from scipy import sparse

_ALL_PAIRS = 32  # the largest group of rows with one key of which every pair is verified


@dataclasses.dataclass(frozen=True)
class Duplicates:
    """Rows to remove.

    Attributes:
        removed: int64, ascending.
        sizes: size of a group (2 or more) -> number of groups of that size.
    """

    removed: np.ndarray
    sizes: dict[int, int]


def preference(policy: str, *, lengths: np.ndarray, dates: np.ndarray) -> np.ndarray:
    """int64 `[rows]`: each group keeps the row with the smallest value, and the first of those that have it.

    `policy` is `longest`, `newest` or `first`. `lengths` are bytes of text. `dates` grow with time, and are smallest
    for documents without a date.
    """
    if policy == "first":
        return np.zeros(len(lengths), np.int64)
    return -(lengths if policy == "longest" else dates).astype(np.int64)


def equal_keys(keys: np.ndarray, preferences: np.ndarray, *, among: np.ndarray) -> Duplicates:
    """Finds the rows with the same key, uint64 `[rows, words of a key]`, `among` these rows (ascending)."""
    return _groups(among, keys[among], preferences)


def band_pairs(keys: np.ndarray, rows: np.ndarray, *, every: bool) -> np.ndarray:
    """Candidate pairs of one band, int64 `[pairs, 2]`: rows with the same key, the smaller first, without repeats.

    `keys` are uint64 `[n]`, `rows` int64 `[n]`, ascending. `every` gives all pairs of a group of up to 32 rows.
    Otherwise, and for larger groups, each row is paired with the first row of its group and with the row before it,
    which suffices to connect the group.
    """
    order = np.argsort(keys, kind="stable")
    ordered, numbers = keys[order], rows[order]
    same = ordered[1:] == ordered[:-1]
    starts = np.flatnonzero(np.concatenate(([True], ~same))) if len(ordered) else np.empty(0, np.int64)
    sizes = np.diff(np.append(starts, len(ordered)))
    firsts = np.repeat(numbers[starts], sizes) if len(starts) else numbers
    inside = np.flatnonzero(same) + 1
    pairs = [np.stack([firsts[inside], numbers[inside]], 1), np.stack([numbers[inside - 1], numbers[inside]], 1)]
    if every:
        for start, size in zip(starts[sizes > 2], sizes[sizes > 2], strict=True):
            if size <= _ALL_PAIRS:
                pairs.append(np.array(list(itertools.combinations(numbers[start : start + size], 2)), np.int64))
    return np.unique(np.concatenate(pairs), axis=0) if len(ordered) else np.empty((0, 2), np.int64)


def clusters(
    pairs: Sequence[np.ndarray],
    preferences: np.ndarray,
    *,
    verify: Callable[[int, int], bool] | None = None,
) -> Duplicates:
    """Finds the connected components of the candidate pairs, int64 `[pairs, 2]` of each band; each keeps one row.

    `verify` tells whether the rows of a pair are similar enough; None accepts all pairs.
    """
    joined = np.unique(np.concatenate(pairs), axis=0) if pairs else np.empty((0, 2), np.int64)
    if verify is not None:
        confirmed = np.fromiter((verify(int(a), int(b)) for a, b in joined), bool, len(joined))
        joined = joined[confirmed]
    if not len(joined):
        return Duplicates(np.empty(0, np.int64), {})
    members, positions = np.unique(joined, return_inverse=True)
    first, second = positions.reshape(joined.shape).T
    graph = sparse.coo_matrix((np.ones(len(first), np.int8), (first, second)), shape=(len(members), len(members)))
    _, labels = sparse.csgraph.connected_components(graph, directed=False)
    return _groups(members, labels[:, np.newaxis], preferences)


def without(rows: np.ndarray, removed: np.ndarray) -> np.ndarray:
    """The rows that are not removed. Both arguments and the result are ascending."""
    return np.setdiff1d(rows, removed, assume_unique=True)


def _groups(rows: np.ndarray, keys: np.ndarray, preferences: np.ndarray) -> Duplicates:
    """Groups `rows` by their keys `[len(rows), words of a key]`; keeps the preferred row of each group."""
    order = np.lexsort((rows, preferences[rows], *keys.T))
    ordered, keys = rows[order], keys[order]
    starts = np.ones(len(order), bool)
    starts[1:] = (keys[1:] != keys[:-1]).any(axis=1)
    sizes, counts = np.unique(np.bincount(np.cumsum(starts) - 1), return_counts=True)
    return Duplicates(
        removed=np.sort(ordered[~starts]),
        sizes={int(size): int(count) for size, count in zip(sizes, counts, strict=True) if size > 1},
    )
