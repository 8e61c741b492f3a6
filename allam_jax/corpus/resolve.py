"""The pipeline's steps over columns, which find the duplicates among the documents of all parts.

`Exact` runs as one task, `Bands` as one task for each band of the signatures, and `Clusters` as one task.
"""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from datatrove.pipeline.base import PipelineStep

from allam_jax.corpus import duplicates, steps
from allam_jax.corpus.corpus_plan import CorpusPlan
from allam_jax.corpus.keys import BANDS, KEYS, SHINGLES, SIGNED, save_arrays
from allam_jax.corpus.minhash import jaccard
from allam_jax.corpus.tally import merge_tallies
from allam_jax.files import read_json, write_json

EXACT, GROUPS = "exact.npz", "groups.json"


class _Resolver(PipelineStep):
    type = "corpus"

    def __init__(self, plan: CorpusPlan):
        super().__init__()
        self.plan, self.dedup = plan, plan.settings.dedup

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[None]:
        """Does the task's work; records how many documents it compared and the seconds of processor time."""
        yield from ()
        start = time.thread_time()
        rows = self._resolve(rank)
        taken = {"documents": rows, "bytes": 0, "seconds": time.thread_time() - start}
        write_json(self.plan.work / f"{self.name}-{rank:03d}.took.json", {"steps": {self.name: taken}})

    def _resolve(self, rank: int) -> int:
        """Does the work and returns the number of documents compared."""
        raise NotImplementedError

    def _load(self, name: str, **options: Any) -> list[Any]:
        """What `numpy.load` gives for the file of this name of each part."""
        return [np.load(self.plan.directory(rank) / name, **options) for rank in range(len(self.plan.parts))]

    def _columns(self, *names: str) -> list[np.ndarray]:
        """Columns of `keys.npz`: the rows of all parts, one part after another."""
        parts = self._load(KEYS)
        return [np.concatenate([part[name] for part in parts]) for name in names]

    def _offsets(self) -> np.ndarray:
        """int64 `[parts + 1]`: the number of rows before each part, and of all."""
        return np.concatenate([[0], np.cumsum([len(part["length"]) for part in self._load(KEYS)], dtype=np.int64)])

    def _preferences(self) -> np.ndarray:
        lengths, dates = self._columns("length", "date")
        return duplicates.preference(self.dedup.keep, lengths=lengths, dates=dates)

    def _write_removed(self, removed: np.ndarray, reasons: np.ndarray) -> None:
        """Writes for each part which of its rows are removed, and why (an index into `steps.REASONS`)."""
        offsets = self._offsets()
        order = np.argsort(removed)
        removed, reasons = removed[order], reasons[order]
        bounds = np.searchsorted(removed, offsets)
        for rank, (start, stop) in enumerate(zip(bounds, bounds[1:], strict=False)):
            rows = {"rows": removed[start:stop] - offsets[rank], "reasons": reasons[start:stop]}
            save_arrays(self.plan.directory(rank) / steps.REMOVED, rows)


class Exact(_Resolver):
    """Finds equal addresses, then equal texts among the documents that are left.

    The rows it removes are final unless the pipeline looks for near-duplicates too.
    """

    name = "exact"

    def _resolve(self, rank: int) -> int:
        preferences = self._preferences()
        left = np.arange(len(preferences))
        removed, reasons, groups = [np.empty(0, np.int64)], [np.empty(0, np.uint8)], {}
        for reason, kind in enumerate(("url", "text")):
            if getattr(self.dedup, kind):
                (keys,) = self._columns(kind)
                among = left[keys[left].any(axis=1)]  # a document without an address has no duplicate by address
                found = duplicates.equal_keys(keys, preferences, among=among)
                left = duplicates.without(left, found.removed)
                removed.append(found.removed)
                reasons.append(np.full(len(found.removed), reason, np.uint8))
                groups[steps.REASONS[reason]] = found.sizes
        all_removed, all_reasons = np.concatenate(removed), np.concatenate(reasons)
        save_arrays(self.plan.work / EXACT, {"removed": all_removed, "reasons": all_reasons})
        write_json(self.plan.work / GROUPS, groups)
        self._write_removed(all_removed, all_reasons)
        return len(preferences)


class Bands(_Resolver):
    """Finds the candidate pairs of one band, the band with the task's rank, among the documents that are left."""

    name = "bands"

    def _resolve(self, rank: int) -> int:
        rows = np.concatenate([*map(np.add, self._load(SIGNED), self._offsets())])
        keys = np.concatenate([part[:, rank] for part in self._load(BANDS, mmap_mode="r")])
        left = ~np.isin(rows, np.load(self.plan.work / EXACT)["removed"])
        pairs = duplicates.band_pairs(keys[left], rows[left], every=self.dedup.verify > 0)
        save_arrays(_pairs(self.plan, rank), pairs)
        return len(rows)


class Clusters(_Resolver):
    """Finds clusters of the candidate pairs of all bands; first verifies the similarity of each pair where asked to."""

    name = "clusters"

    def _resolve(self, rank: int) -> int:
        pairs = [np.load(_pairs(self.plan, band)) for band in range(self.plan.minhash.bands)]
        verify = self._verifier() if self.dedup.verify > 0 else None
        found = duplicates.clusters(pairs, self._preferences(), verify=verify)
        exact = np.load(self.plan.work / EXACT)
        near = np.full(len(found.removed), steps.REASONS.index("near-duplicate"), np.uint8)
        groups = read_json(self.plan.work / GROUPS)
        write_json(self.plan.work / GROUPS, groups | {"near-duplicate": found.sizes})
        self._write_removed(np.concatenate([exact["removed"], found.removed]), np.concatenate([exact["reasons"], near]))
        return sum(map(len, pairs))

    def _verifier(self) -> Callable[[int, int], bool]:
        offsets, signed, stored = self._offsets(), self._load(SIGNED), self._load(SHINGLES)
        flat, ends = ([part[name] for part in stored] for name in ("flat", "ends"))

        def shingles(row: int) -> np.ndarray:
            part = int(np.searchsorted(offsets, row, side="right")) - 1
            place = int(np.searchsorted(signed[part], row - offsets[part]))
            return flat[part][ends[part][place - 1] if place else 0 : ends[part][place]]

        return lambda first, second: jaccard(shingles(first), shingles(second)) >= self.dedup.verify


def took(plan: CorpusPlan) -> dict[str, Any]:
    """The documents and seconds of this module's steps, as a tally. `clusters` counts candidate pairs."""
    total: dict[str, Any] = {}
    for path in sorted(plan.work.glob("*.took.json")):
        total = merge_tallies(total, read_json(path))
    return total


def groups_of(plan: CorpusPlan) -> dict[str, dict[int, int]]:
    """Reason -> size of a group of duplicates -> number of groups of that size."""
    found = read_json(plan.work / GROUPS) if plan.deduplicates else {}
    return {reason: {int(size): count for size, count in sizes.items()} for reason, sizes in found.items()}


def _pairs(plan: CorpusPlan, band: int) -> Path:
    return plan.work / f"pairs-{band:03d}.npy"
