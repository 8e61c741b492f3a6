"""Batches for one process of many: the same for any number of processes, and resumable at any step.

The global batch consists of a fixed number of *lanes*, with `batch_size / lanes` rows each. A lane is a complete
pipeline:

    documents of each source, shuffled anew for every epoch  ->  every `lanes`-th of them
        ->  BOS text EOS as tokens  ->  packed into rows  ->  rows drawn from the sources by weight

Tokens are made from text on the way, or read from a cache. The weights are those of the step's phase. The rows of a
lane depend only on its number, and a process builds only the lanes that have its rows. So neither the batches nor the
saved state (the step and, for each lane, the number of rows drawn and the document and offset in each source) depend on
the number of processes, and a run may continue with another number.
"""

import hashlib
import math
import weakref
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import grain
import numpy as np
from absl import logging
from grain.experimental import ThreadPrefetchDatasetIterator

from allam_jax.data.batch import DTYPES, Batch, Encoder
from allam_jax.data.interleave import MixedRows
from allam_jax.data.packing import PackedRows
from allam_jax.data.phases import Phase, make_phases, phase_at
from allam_jax.data.settings import DataSettings
from allam_jax.data.sources import open_source, tokenised
from allam_jax.errors import UserError
from allam_jax.files import check_shape, sha256_of_json
from allam_jax.settings import as_dict

DEFAULT_LANES = 8  # without a number in the config; less if the batch size has fewer common factors with it

_STATE_VERSION = 1


class Loader(Iterator[Batch]):
    """Iterates over this process's rows of every batch: dicts of [rows, seq_len] numpy arrays. Made by `make_loader`.

    Attributes:
        source_names: the sources in the order in which `source_ids` count them.
        mixture: hash of the sources, their weights and the phases.
    """

    def __init__(
        self,
        batches: "ThreadPrefetchDatasetIterator | _Batches",
        *,
        identity: dict[str, Any],
        lanes: range,
        sizes: dict[str, int],
        phases: Sequence[Phase],
        mixture: str,
    ):
        self.mixture = mixture
        self.source_names = list(sizes)
        # Grain's iterator stops its thread when it is deleted, which fails while the interpreter shuts down. So the
        # only reference to it is in a list, which `close` or the finaliser (it runs before the shutdown) empties.
        self._held = [batches]
        self._finalizer = weakref.finalize(self, _close, self._held)
        self._identity = identity
        self._lanes = lanes
        self._sizes = sizes
        self._phases = phases

    def __next__(self) -> Batch:
        return next(self._iterator)

    def get_state(self) -> dict[str, Any]:
        """JSON-able state between the last batch handed out and the next, regardless of prefetched batches.

        It has this process's lanes. The state of a run has the `lanes` of all processes; the other entries are equal.
        """
        return {**self._identity, **self._iterator.get_state()}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Continues at a state, by any number of processes. Weights, batch size and row length may differ from then.

        A source that the state lacks starts at its beginning. The state's step decides the phase; `set_step` sets
        another.

        Raises:
            UserError: the state has another tokenizer, seed, number of lanes or content of a source, or lacks a lane.
        """
        for key in ("version", "tokenizer", "seed", "number_of_lanes"):
            if state.get(key) != self._identity[key]:
                raise UserError(
                    f"data state: its {key} is {state.get(key)!r}, but this run's is {self._identity[key]!r}; "
                    f"resume with the same one"
                    + (f" (data.lanes={state.get(key)})" if key == "number_of_lanes" else "")
                    + ", or start the data anew"
                )
        check_shape(state, kind=dict, keys={"sources": dict, "lanes": dict}, where="data state:")
        before, now = state["sources"], self._identity["sources"]
        for name in now:
            if name in before and before[name] != now[name]:
                raise UserError(
                    f"data state: the content of source {name} has changed since the state was saved; resume with the "
                    f"same dataset, give the new one another name, or start the data anew"
                )
        if set(before) != set(now):
            new, gone = sorted(set(now) - set(before)), sorted(set(before) - set(now))
            logging.info("data state: new sources %s start at their beginning; %s are gone", new, gone)
        for lane in self._lanes:
            if str(lane) not in state["lanes"]:
                raise UserError(
                    f"data state: no lane {lane}, only {', '.join(state['lanes'])}; join the lanes of all processes"
                )
        lanes = {str(lane): state["lanes"][str(lane)] for lane in self._lanes}
        # States that were saved before phases existed have no step.
        self._iterator.set_state({"step": state.get("step", 0), "lanes": lanes})

    def set_step(self, step: int) -> None:
        """Makes the next batch that of update `step + 1`, for the phases; the position in the data stays."""
        self._iterator.set_state({**self._iterator.get_state(), "step": step})

    def mixture_at(self, step: int) -> dict[str, float]:
        """Metrics for the batch of update `step + 1`: its phase, and each source's share; none for one phase."""
        if len(self._phases) == 1:
            return {}
        index = phase_at(self._phases, step)
        shares = self._phases[index].shares
        return {"phase": index, **{f"mixture/{name}": share for name, share in shares.items()}}

    def epochs(self) -> dict[str, float]:
        """How often the documents of each source have been used: the mean over this process's lanes."""
        lanes = self._iterator.get_state()["lanes"].values()
        return {
            name: float(np.mean([lane["sources"][name]["document"] for lane in lanes]))
            * self._identity["number_of_lanes"]
            / size
            for name, size in self._sizes.items()
        }

    def close(self) -> None:
        """Stops the prefetching thread. The loader cannot be used afterwards."""
        self._finalizer()

    @property
    def _iterator(self) -> "ThreadPrefetchDatasetIterator | _Batches":
        if not self._held:
            raise ValueError("the loader is closed")
        return self._held[0]

    def __enter__(self) -> "Loader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def make_loader(
    data: DataSettings,
    *,
    tokenizer: Encoder,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
    prefetch: int = 2,
) -> Loader:
    """Makes this process's loader.

    Args:
        data: sources, their weights (epochs do not count here), phases, and the shape of a batch of all processes. A
            source of weight 0 keeps its place in `source_ids`. The number of lanes divides `batch_size` and is fixed
            for a run; if `process_count` divides it, no two processes read the same documents.
        tokenizer: its fingerprint is compared with those of resumed states and of token caches.
        seed: of the order of documents and of the mixture.
        process_index: of this process.
        process_count: divisor of `batch_size`; process p gets rows [p, p + 1) * batch_size / process_count.
        prefetch: number of batches that a thread prepares ahead; 0 for none.

    Raises:
        UserError: numbers that do not divide, bad weights, paths or splits, or empty sources.
    """
    sources, batch_size = data.sources, data.batch_size
    lanes = data.lanes or math.gcd(batch_size, DEFAULT_LANES)
    for name, divisor in (("lanes", lanes), ("process_count", process_count)):
        if batch_size % divisor:
            raise UserError(f"data: batch_size {batch_size} cannot be divided by {name} {divisor}; make it a multiple")
    all_phases = make_phases({name: float(source.weight) for name, source in sources.items()}, data.phases)
    opened = {name: open_source(name, source, tokenizer=tokenizer.fingerprint) for name, source in sources.items()}
    local_rows = batch_size // process_count
    rows = range(process_index * local_rows, (process_index + 1) * local_rows)
    rows_per_lane = batch_size // lanes
    local_lanes = range(rows.start // rows_per_lane, (rows.stop - 1) // rows_per_lane + 1)

    def lane_rows(lane: int) -> MixedRows:
        packed = {}
        for name, source in opened.items():
            documents = grain.MapDataset.source(source).shuffle(seed=_source_seed(seed, name)).repeat()
            of_lane = tokenised(documents[lane::lanes], of=source, tokenizer=tokenizer)
            packed[name] = PackedRows(of_lane, seq_len=data.seq_len, name=name, period=len(source))
        return MixedRows(packed, weights=all_phases[0].weights, lane=lane, seed=seed)

    batches = _Batches(
        {lane: lane_rows(lane) for lane in local_lanes}, rows, rows_per_lane=rows_per_lane, phases=all_phases
    )
    identity = {
        "version": _STATE_VERSION,
        "tokenizer": tokenizer.fingerprint,
        "seed": seed,
        "number_of_lanes": lanes,
        "sources": {name: source.fingerprint for name, source in opened.items()},
    }
    sizes = {name: len(source) for name, source in opened.items()}
    iterator = ThreadPrefetchDatasetIterator(batches, prefetch) if prefetch else batches
    # Without phases the hash is that of the sources alone, as it was before there were phases.
    read = {name: {"path": some.path, "split": some.split, "weight": some.weight} for name, some in sources.items()}
    mixture = sha256_of_json([read, as_dict(data.phases)] if data.phases else read)
    return Loader(iterator, identity=identity, lanes=local_lanes, sizes=sizes, phases=all_phases, mixture=mixture)


def _close(held: list[Any]) -> None:
    while held:
        held.pop().close()


def _source_seed(seed: int, name: str) -> int:
    """32 bits (Grain's limit) of the seed and the name, so that a source's order does not depend on other sources."""
    return int.from_bytes(hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=4).digest())


class _Batches(Iterator[Batch]):
    """Stacks the rows of the local lanes and keeps those of this process; sets each lane's weights for the step.

    The state is `{"step": number of batches handed out, "lanes": {lane: its state}}`.
    """

    def __init__(self, lanes: Mapping[int, MixedRows], rows: range, *, rows_per_lane: int, phases: Sequence[Phase]):
        self._lanes = {str(lane): mixed for lane, mixed in lanes.items()}
        self._rows_per_lane, self._phases = rows_per_lane, phases
        first = rows.start - min(lanes) * rows_per_lane
        self._mine = slice(first, first + len(rows))
        self._step = 0

    def __next__(self) -> Batch:
        weights = self._phases[phase_at(self._phases, self._step)].weights
        rows = []
        for lane in self._lanes.values():
            lane.weights = weights
            rows += [next(lane) for _ in range(self._rows_per_lane)]
        self._step += 1
        return {key: np.stack([row[key] for row in rows[self._mine]]) for key in DTYPES}

    def get_state(self) -> dict[str, Any]:
        return {"step": self._step, "lanes": {name: lane.get_state() for name, lane in self._lanes.items()}}

    def set_state(self, state: dict[str, Any]) -> None:
        self._step = state["step"]
        for name, lane in self._lanes.items():
            lane.set_state(state["lanes"][name])

    def close(self) -> None:
        """Does nothing: only the prefetching iterator has a thread to stop."""
