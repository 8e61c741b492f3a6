"""The pipeline's steps over columns: which documents of all parts repeat others. One task each for equal keys and for
clusters, one a band for candidates."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from datatrove.pipeline.base import PipelineStep

from allam_jax.corpus import duplicates, steps
from allam_jax.corpus.corpus_plan import Plan
from allam_jax.corpus.minhash import jaccard
from allam_jax.corpus.tally import merge
from allam_jax.files import atomic_path, read_json, write_json

EXACT, GROUPS = "exact.npz", "groups.json"


class _Resolver(PipelineStep):
    type = "corpus"

    def __init__(self, plan: Plan):
        super().__init__()
        self.plan, self.dedup = plan, plan.settings["dedup"]

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[None]:
        """Does the task's work, and writes down what it took."""
        yield from ()
        start = time.thread_time()
        rows = self.resolve(rank)
        taken = {"documents": rows, "bytes": 0, "seconds": time.thread_time() - start}
        write_json(self.plan.work / f"{self.name}-{rank:03d}.took.json", {"steps": {self.name: taken}})

    def resolve(self, rank: int) -> int:
        """The work; returns the number of documents looked at."""
        raise NotImplementedError

    @property
    def ranks(self) -> range:
        return range(len(self.plan.parts))

    def load(self, name: str, rank: int) -> Any:
        return np.load(self.plan.directory(rank) / name)

    def columns(self, *names: str) -> list[np.ndarray]:
        """Columns of `keys.npz`, all parts one after another."""
        parts = [self.load(steps.KEYS, rank) for rank in self.ranks]
        return [np.concatenate([part[name] for part in parts]) for name in names]

    def offsets(self) -> np.ndarray:
        """int64 `[parts + 1]`: rows before each part."""
        counts = [len(self.load(steps.KEYS, rank)["length"]) for rank in self.ranks]
        return np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])

    def preferences(self) -> np.ndarray:
        lengths, dates = self.columns("length", "date")
        return duplicates.preference(self.dedup["keep"], lengths=lengths, dates=dates)

    def write_removed(self, removed: np.ndarray, reasons: np.ndarray) -> None:
        """Tells each part which of its rows go, and why (index into `steps.REASONS`)."""
        offsets = self.offsets()
        order = np.argsort(removed)
        removed, reasons = removed[order], reasons[order]
        bounds = np.searchsorted(removed, offsets)
        for rank in self.ranks:
            mine = slice(bounds[rank], bounds[rank + 1])
            with atomic_path(self.plan.directory(rank) / steps.REMOVED) as temporary, open(temporary, "wb") as file:
                np.savez(file, rows=removed[mine] - offsets[rank], reasons=reasons[mine])


class Exact(_Resolver):
    """Equal addresses, then equal texts among the rest."""

    name = "exact"

    def resolve(self, rank: int) -> int:
        """Writes the rows to remove so far, and for good unless near-duplicates follow."""
        preferences = self.preferences()
        left = np.arange(len(preferences))
        removed, reasons, groups = [], [], {}
        for reason, kind in enumerate(("url", "text")):
            if self.dedup[kind]:
                (keys,) = self.columns(kind)
                among = left[keys[left].any(axis=1)]  # no address, no duplicate of it
                found = duplicates.equal_keys(keys, preferences, among=among)
                left = duplicates.without(left, found.removed)
                removed.append(found.removed)
                reasons.append(np.full(len(found.removed), reason, np.uint8))
                groups[steps.REASONS[reason]] = found.sizes
        all_removed = np.concatenate([np.empty(0, np.int64), *removed])
        all_reasons = np.concatenate([np.empty(0, np.uint8), *reasons])
        with atomic_path(self.plan.work / EXACT) as temporary, open(temporary, "wb") as file:
            np.savez(file, removed=all_removed, reasons=all_reasons)
        write_json(self.plan.work / GROUPS, groups)
        self.write_removed(all_removed, all_reasons)
        return len(preferences)


class Bands(_Resolver):
    """Candidate pairs of one band among the rows that are left."""

    name = "bands"

    def resolve(self, rank: int) -> int:
        """Writes the pairs of the band with this rank's number."""
        offsets = self.offsets()
        rows = np.concatenate([self.load(steps.SIGNED, part) + offsets[part] for part in self.ranks])
        keys = np.concatenate([_mapped(self.plan.directory(part) / steps.BANDS)[:, rank] for part in self.ranks])
        left = ~np.isin(rows, np.load(self.plan.work / EXACT)["removed"])
        pairs = duplicates.band_pairs(keys[left], rows[left], every=self.dedup["verify"] > 0)
        with atomic_path(_pairs(self.plan, rank)) as temporary, open(temporary, "wb") as file:
            np.save(file, pairs)
        return len(rows)


class Clusters(_Resolver):
    """Clusters of the candidates of all bands, after a look at their true similarity where one is asked for."""

    name = "clusters"

    def resolve(self, rank: int) -> int:
        """Writes the rows to remove for good."""
        pairs = [np.load(_pairs(self.plan, band)) for band in range(self.plan.minhash.bands)]
        verify = self._is_similar() if self.dedup["verify"] > 0 else None
        found = duplicates.clusters(pairs, self.preferences(), verify=verify)
        exact = np.load(self.plan.work / EXACT)
        near = np.full(len(found.removed), steps.REASONS.index("near-duplicate"), np.uint8)
        groups = read_json(self.plan.work / GROUPS)
        write_json(self.plan.work / GROUPS, groups | {"near-duplicate": found.sizes})
        self.write_removed(np.concatenate([exact["removed"], found.removed]), np.concatenate([exact["reasons"], near]))
        return sum(map(len, pairs))

    def _is_similar(self) -> Any:
        offsets = self.offsets()
        stored = [self.load(steps.SHINGLES, part) for part in self.ranks]
        flat, ends = ([part[name] for part in stored] for name in ("flat", "ends"))
        signed = [self.load(steps.SIGNED, part) for part in self.ranks]

        def shingles(row: int) -> np.ndarray:
            part = int(np.searchsorted(offsets, row, side="right")) - 1
            place = int(np.searchsorted(signed[part], row - offsets[part]))
            return flat[part][ends[part][place - 1] if place else 0 : ends[part][place]]

        return lambda first, second: jaccard(shingles(first), shingles(second)) >= self.dedup["verify"]


def took(plan: Plan) -> dict[str, Any]:
    """What the steps of this module took, as a tally. `clusters` counts candidate pairs, not documents."""
    total: dict[str, Any] = {}
    for path in sorted(plan.work.glob("*.took.json")):
        total = merge(total, read_json(path))
    return total


def groups_of(plan: Plan) -> dict[str, dict[int, int]]:
    """Reason -> size of a group -> number of groups."""
    found = json.loads((plan.work / GROUPS).read_text()) if plan.deduplicates else {}
    return {reason: {int(size): count for size, count in sizes.items()} for reason, sizes in found.items()}


def _pairs(plan: Plan, band: int) -> Path:
    return plan.work / f"pairs-{band:03d}.npy"


def _mapped(path: Path) -> np.ndarray:
    return np.load(path, mmap_mode="r")
