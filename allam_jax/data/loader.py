"""Batches for one process out of many, the same for any number of processes, resumable at any step.

The global batch consists of a fixed number of *lanes*, `batch_size / lanes` rows each. A lane is a complete pipeline:

    documents of each source, in an order of the seed, a new one every epoch  ->  every `lanes`-th of them
        ->  BOS text EOS as tokens  ->  packed into rows  ->  rows drawn from the sources by weight

Text is tokenised on the way, or its tokens are read from a cache; the weights are those of the phase that the step is
in. What a lane yields depends on its number alone, and a process builds just the lanes that hold its rows. So neither
the batches nor the saved state (the step, and per lane: rows drawn, and document and offset in each source) know of
hosts, and a run may go on with another number of them.
"""

import hashlib
import math
import weakref
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import grain
import numpy as np
from absl import logging
from grain.experimental import ThreadPrefetchIterDataset

from allam_jax.data.batch import DTYPES, Batch, Encoder
from allam_jax.data.interleave import MixedRows
from allam_jax.data.packing import PackedRows
from allam_jax.data.phases import Phase, make_phases, phase_at
from allam_jax.data.sources import check_sources, open_source, tokenised
from allam_jax.errors import UserError
from allam_jax.files import sha256_of_json

# Without a number in the config: as many lanes as these divide the batch, whatever the number of processes.
DEFAULT_LANES = 8

_STATE_VERSION = 1


class Loader(Iterator[Batch]):
    """Iterator over this process's rows of every batch: dicts of [rows, seq_len] numpy arrays. Built by `make_loader`.

    Attributes:
      source_names: The sources in the order that `source_ids` count them.
      mixture: Hash of the sources, their weights and the phases.
    """

    def __init__(
        self,
        batches: grain.IterDataset,
        *,
        identity: dict[str, Any],
        lanes: range,
        sizes: dict[str, int],
        phases: Sequence[Phase],
        mixture: str,
    ):
        self.mixture = mixture
        self.source_names = list(sizes)
        # Grain's iterators stop their thread when they are deleted, and fail when the interpreter is being torn down
        # by then: so the only reference is where `close` and the finaliser (which runs before that) can drop it.
        self._held = [iter(batches)]
        self._finalizer = weakref.finalize(self, _close, self._held)
        self._identity = identity
        self._lanes = lanes
        self._sizes = sizes
        self._phases = phases

    def __next__(self) -> Batch:
        return next(self._iterator)

    def get_state(self) -> dict[str, Any]:
        """JSON-able state, exactly between the last batch handed out and the next, however many are prefetched.

        Holds this process's lanes: the state of the run is the union of all processes' `lanes`; the rest is equal.
        """
        return {**self._identity, **self._iterator.get_state()}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Goes on where the state was taken, by any number of processes. Weights, batch size and row length may differ.

        A source that the state does not know starts at its beginning. The step that decides the phase is the state's;
        `set_step` sets another.

        Raises:
          UserError: The state is of another tokenizer, seed, number of lanes or content of a source, or lacks a lane.
        """
        for key in ("version", "tokenizer", "seed", "number_of_lanes"):
            if state.get(key) != self._identity[key]:
                raise UserError(
                    f"data state: its {key} is {state.get(key)!r}, but this run's is {self._identity[key]!r}; "
                    f"resume with the same one, or start the data afresh"
                )
        before, now = state["sources"], self._identity["sources"]
        for name in now:
            if name in before and before[name] != now[name]:
                raise UserError(
                    f"data state: source {name} has other content than when the state was saved; resume with the "
                    f"same dataset, give the new one another name, or start the data afresh"
                )
        if set(before) != set(now):
            new, gone = sorted(set(now) - set(before)), sorted(set(before) - set(now))
            logging.info("data state: new sources %s start at their beginning; %s are gone", new, gone)
        for lane in self._lanes:
            if str(lane) not in state["lanes"]:
                raise UserError(f"data state: no lane {lane}; it has {', '.join(state['lanes'])}: join all processes'")
        lanes = {str(lane): state["lanes"][str(lane)] for lane in self._lanes}
        # States that were saved before there were phases know no step.
        self._iterator.set_state({"step": state.get("step", 0), "lanes": lanes})

    def set_step(self, step: int) -> None:
        """The next batch is that of update `step + 1`: what the phases go by. The position in the data stays."""
        self._iterator.set_state({**self._iterator.get_state(), "step": step})

    def mixture_at(self, step: int) -> dict[str, float]:
        """For metrics: the phase of the batch of update `step + 1` (0 is the first) and each source's share in it.

        Nothing where the mixture never changes.
        """
        if len(self._phases) == 1:
            return {}
        index = phase_at(self._phases, step)
        shares = self._phases[index].shares
        return {"phase": index, **{f"mixture/{name}": share for name, share in shares.items()}}

    def epochs(self) -> dict[str, float]:
        """How often each source has been gone through, by documents, in this process's lanes (their mean)."""
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
    def _iterator(self) -> grain.DatasetIterator:
        if not self._held:
            raise ValueError("the loader is closed")
        return self._held[0]

    def __enter__(self) -> "Loader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def make_loader(
    *,
    sources: Mapping[str, Mapping[str, Any]],
    tokenizer: Encoder,
    seq_len: int,
    batch_size: int,
    seed: int,
    phases: Mapping[str, Mapping[str, Any]] | None = None,
    lanes: int | None = None,
    process_index: int = 0,
    process_count: int = 1,
    prefetch: int = 2,
) -> Loader:
    """Builds this process's loader.

    Args:
      sources: Name to `{"path": dataset directory or token cache, "weight": share of tokens (default 1), "split":
        default "train"}`. Weights need not sum to 1. A source of weight 0 keeps its place in `source_ids`.
      tokenizer: Texts to ids; its fingerprint is checked on resume, and against that of token caches.
      seq_len: Tokens per row.
      batch_size: Rows per step, of all processes together.
      seed: Of the order of documents and of the mixture.
      phases: Mixtures of later steps: name to `{"from_step": updates made, "weights": {source: weight}}`.
      lanes: Divisor of `batch_size`; a property of the run, not of the machines. Reading is not repeated by several
        processes where `process_count` divides it. Default: the greatest common divisor of `batch_size` and 8.
      process_index: Of this process.
      process_count: Divisor of `batch_size`; process p gets rows [p, p + 1) * batch_size / process_count.
      prefetch: Batches prepared ahead by a thread; 0 for none.

    Raises:
      UserError: See the messages: numbers that do not divide, unknown keys, weights, paths and splits, empty sources.
    """
    lanes = math.gcd(batch_size, DEFAULT_LANES) if lanes is None else lanes
    for name, divisor in (("lanes", lanes), ("process_count", process_count)):
        if divisor < 1 or batch_size < 1 or batch_size % divisor:
            raise UserError(f"data: batch_size {batch_size} cannot be divided by {name} {divisor}; make it a multiple")
    if seq_len < 1:
        raise UserError(f"data: seq_len is {seq_len}; expected at least 1")
    all_phases = make_phases(check_sources(sources), phases or {})
    opened = {name: open_source(name, entry, tokenizer=tokenizer.fingerprint) for name, entry in sources.items()}
    local_rows = batch_size // process_count
    rows = range(process_index * local_rows, (process_index + 1) * local_rows)
    lane_rows = batch_size // lanes
    local_lanes = range(rows.start // lane_rows, (rows.stop - 1) // lane_rows + 1)

    def lane_dataset(lane: int) -> MixedRows:
        packed = {}
        for name, source in opened.items():
            documents = grain.MapDataset.source(source).shuffle(seed=_source_seed(seed, name)).repeat()
            of_lane = tokenised(documents[lane::lanes], of=source, tokenizer=tokenizer)
            packed[name] = PackedRows(of_lane, seq_len=seq_len, name=name, period=len(source))
        return MixedRows(packed, weights=all_phases[0].weights, lane=lane, seed=seed)

    datasets = {lane: lane_dataset(lane) for lane in local_lanes}
    batches: grain.IterDataset = _Batches(datasets, rows, lane_rows=lane_rows, phases=all_phases)
    if prefetch:
        batches = ThreadPrefetchIterDataset(batches, prefetch_buffer_size=prefetch)
    identity = {
        "version": _STATE_VERSION,
        "tokenizer": tokenizer.fingerprint,
        "seed": seed,
        "number_of_lanes": lanes,
        "sources": {name: source.fingerprint for name, source in opened.items()},
    }
    sizes = {name: len(source) for name, source in opened.items()}
    # Without phases the hash is that of the sources alone, as it was before there were phases.
    read = {name: {**entry, "path": str(entry["path"])} for name, entry in sources.items()}
    mixture = sha256_of_json([read, phases] if phases else read)
    return Loader(batches, identity=identity, lanes=local_lanes, sizes=sizes, phases=all_phases, mixture=mixture)


def _close(held: list[grain.DatasetIterator]) -> None:
    while held:
        held.pop().close()


def _source_seed(seed: int, name: str) -> int:
    """32 bits (Grain's limit) of the seed and the name: the order in a source does not depend on the other sources."""
    return int.from_bytes(hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=4).digest())


class _Batches(grain.IterDataset):
    """Stacks the rows of the local lanes and keeps those of this process; tells the lanes which mixture it is now."""

    def __init__(self, lanes: Mapping[int, MixedRows], rows: range, *, lane_rows: int, phases: Sequence[Phase]):
        super().__init__(list(lanes.values()))
        self.lanes = dict(lanes)
        self.rows = rows
        self.lane_rows = lane_rows
        self.phases = phases

    def __iter__(self) -> grain.DatasetIterator:
        return _BatchesIterator(self)


class _BatchesIterator(grain.DatasetIterator):
    """The state is `{"step": updates whose batches have been handed out, "lanes": {lane: its state}}`."""

    def __init__(self, dataset: _Batches):
        self._iterators = {str(lane): iter(rows) for lane, rows in dataset.lanes.items()}
        super().__init__(list(self._iterators.values()))
        self._dataset = dataset
        self._step = 0

    def __next__(self) -> Batch:
        lane_rows, phases = self._dataset.lane_rows, self._dataset.phases
        weights = phases[phase_at(phases, self._step)].weights
        rows = []
        for iterator in self._iterators.values():
            iterator.weights = weights
            rows += [next(iterator) for _ in range(lane_rows)]
        self._step += 1
        first = self._dataset.rows.start - min(self._dataset.lanes) * lane_rows
        mine = rows[first : first + len(self._dataset.rows)]
        return {key: np.stack([row[key] for row in mine]) for key in DTYPES}

    def get_state(self) -> dict[str, Any]:
        lanes = {lane: iterator.get_state() for lane, iterator in self._iterators.items()}
        return {"step": self._step, "lanes": lanes}

    def set_state(self, state: dict[str, Any]) -> None:
        self._step = state["step"]
        for lane, iterator in self._iterators.items():
            iterator.set_state(state["lanes"][lane])
