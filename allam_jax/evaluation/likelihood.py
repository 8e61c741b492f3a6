"""Log-likelihoods of continuations: what the multiple-choice suites, perplexities and pairwise comparisons are made of.

    score = Likelihood(params, config=config, options=options, settings=settings, mesh=mesh)
    score([Pair(context_ids, continuation_ids), ...])  ->  [Score(logprob, greedy), ...]

Many short texts share a row. A context of several continuations, and a beginning of several contexts, are computed once
(`shared_prefixes.py` decides, `model/branching.py` computes). Logits exist only where something is predicted. They are
float32, and log-probabilities are summed in float64.

Shapes: B rows, T tokens of a row, D model width, V vocabulary, P predictions.
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from allam_jax import watchdog
from allam_jax.errors import UserError
from allam_jax.evaluation.program_shapes import STEP, Shapes, rounded, rows_at_once
from allam_jax.evaluation.score_log import ScoreLog
from allam_jax.evaluation.settings import LikelihoodSettings
from allam_jax.evaluation.shared_prefixes import (
    Batch,
    Group,
    Pair,
    Score,
    Targets,
    batches_of,
    groups_of,
    items_of,
    write_row,
)
from allam_jax.generation.slots import buckets
from allam_jax.model import layouts
from allam_jax.model.branching import Branching, Parts, Trunks
from allam_jax.model.kv_cache import Filling, KVCache
from allam_jax.model.llama import Params, bind
from allam_jax.model.llama_config import ComputeOptions, LlamaConfig
from allam_jax.parallel.sharding import constrain, pieces

PREDICTED_AT_ONCE = 128  # positions whose logits exist at a time
CACHED = 4  # trunks of so many batches' tokens are kept at a time


@dataclasses.dataclass
class Work:
    """What scoring has cost so far."""

    pairs: int = 0
    known: int = 0  # pairs whose scores an earlier run has written
    truncated: int = 0  # pairs whose context lost its beginning, because it exceeded the model's
    tokens: int = 0  # of the pairs, one by one
    computed: int = 0  # of them, after sharing
    places: int = 0  # with padding


@dataclasses.dataclass(frozen=True)
class Network:
    """What a program is compiled for, beside the shapes of its arguments."""

    config: LlamaConfig
    options: ComputeOptions


class Rows(NamedTuple):
    """A batch of rows, and what is predicted in it."""

    tokens_BT: np.ndarray
    parts: Parts
    places_P: np.ndarray  # row * T + place
    targets_P: np.ndarray


class Likelihood:
    """Scores continuations with one model.

    Args:
        params: of `Llama(config)`, on `mesh`; an attribute that may be set to others.
        config: shapes.
        options: how to compute; dropout is off.
        settings: the size of a batch.
        mesh: it cuts the rows of a batch. With several processes, all make the same calls with equal arguments.
        max_length: tokens that the model reads at most; by default its context.
        log: keeps scores as they are computed, and gives those that it has.
    """

    def __init__(
        self,
        params: Params,
        *,
        config: LlamaConfig,
        options: ComputeOptions,
        settings: LikelihoodSettings,
        mesh: Mesh,
        max_length: int = 0,
        log: ScoreLog | None = None,
    ):
        self.max_length = max_length or config.max_position
        self.work = Work()
        options = dataclasses.replace(
            options, remat="none", dropout_embedding=0.0, dropout_attention=0.0, dropout_residual=0.0
        )
        self.params, self._mesh, self._devices = params, mesh, pieces("batch", mesh.shape)
        rows = settings.rows or (
            1 if mesh.devices.flat[0].platform == "cpu" else 4
        )  # scores then stay in a CPU's cache
        self._row_tokens, self._places = settings.row_tokens, rows * settings.row_tokens
        self._attention = 3.0 * config.dim  # half of what the multiplications alone come to: they are small ones
        self._network = Network(config, options)
        self._prefills, self._programs = Shapes(), Shapes()
        self._log = log

    def __call__(self, pairs: Sequence[Pair]) -> list[Score]:
        """A score for each pair, in their order.

        A pair that exceeds the model's context loses the beginning of its own. UserError for a continuation that
        exceeds it alone, for a pair without tokens, and for an id outside of the vocabulary.
        """
        pairs = [self._fitting(pair) for pair in pairs]
        found = [None if self._log is None else self._log.known(pair) for pair in pairs]
        missing = [number for number, score in enumerate(found) if score is None]
        asked = [pairs[number] for number in missing]
        for numbers, scores in self._scores(asked):
            if self._log is not None:
                self._log.add([asked[number] for number in numbers], scores)
            for number, score in zip(numbers, scores, strict=True):
                found[missing[number]] = score
        self.work.pairs += len(pairs)
        self.work.known += len(pairs) - len(missing)
        return [score for score in found if score is not None]

    def _scores(self, pairs: Sequence[Pair]) -> Iterator[tuple[list[int], list[Score]]]:
        """Numbers of pairs and their scores, a batch at a time."""
        groups = groups_of(items_of(pairs), cost=self._row_tokens // 2)
        waiting: tuple[Targets, tuple[Array, Array]] | None = None
        with jax.set_mesh(self._mesh):
            for round_ in self._rounds(groups):
                for result in self._scored(round_):
                    watchdog.note("score")
                    if waiting is not None:  # fetched one batch late, so that the devices never wait for the host
                        yield _summed(*waiting)
                    waiting = result
            if waiting is not None:
                yield _summed(*waiting)

    def _fitting(self, pair: Pair) -> Pair:
        context, continuation = pair
        if not context or not continuation:
            raise UserError("a context or a continuation without tokens; expected at least one of each")
        if len(continuation) > self.max_length:
            raise UserError(f"a continuation of {len(continuation)} tokens; the model reads {self.max_length} at most")
        vocab = self._network.config.vocab_size
        if not (min(context) >= 0 and max(context) < vocab and min(continuation) >= 0 and max(continuation) < vocab):
            raise UserError(f"an id outside of the model's vocabulary of {vocab}; use the tokenizer of these weights")
        excess = len(context) + len(continuation) - 1 - self.max_length
        if excess > 0:
            self.work.truncated += 1
        context = tuple(context[max(0, excess) :])
        self.work.tokens += len(context) + len(continuation) - 1
        return Pair(context, tuple(continuation))

    def _rounds(self, groups: Sequence[Group]) -> Iterator[list[Group]]:
        """Groups that are scored together: those without a trunk, and trunks of similar lengths that fill a cache."""
        yield from ([group] for group in groups if not group.trunk)
        waiting = sorted((group for group in groups if group.trunk), key=lambda group: -group.trunk)
        while waiting:
            count = self._slots(waiting[0].trunk)
            yield waiting[:count]
            waiting = waiting[count:]

    def _slots(self, trunk: int) -> int:
        """Trunks of a cache."""
        return self._devices * max(1, CACHED * self._places // _capacity(trunk))

    def _scored(self, groups: list[Group]) -> Iterator[tuple[Targets, tuple[Array, Array]]]:
        """The batches of a round."""
        trunks = self._trunks(groups) if groups[0].trunk else None
        slots = {id(group): slot for slot, group in enumerate(groups)}
        batches = batches_of(
            groups, row_tokens=self._row_tokens, places=self._places * self._devices, attention=self._attention
        )
        for batch in batches:
            rows, targets = self._rows(batch, cached=0 if trunks is None else trunks.capacity)
            of_rows = None
            if trunks is not None:
                slots_B = [slots[id(row.group)] for row in batch.rows]
                slots_B += [0] * (len(rows.tokens_BT) - len(slots_B))
                lengths_B = [groups[slot].trunk for slot in slots_B]
                of_rows = Trunks(trunks, np.array(lengths_B, np.int32), np.array(slots_B, np.int32))
            branches = bool(np.any(rows.parts.behind_BT))
            yield targets, _predict(self._network, branches, self.params, rows, of_rows)

    def _trunks(self, groups: Sequence[Group]) -> KVCache:
        """Prefills the trunks of the groups, longest first, a slot for each."""
        capacity, slots = _capacity(groups[0].trunk), self._slots(groups[0].trunk)
        dtype = jnp.dtype(self._network.options.compute_dtype)
        cache = KVCache.empty(self._network.config, slots=slots, capacity=capacity, dtype=dtype)
        first = 0
        while first < len(groups):
            length = rounded(groups[first].trunk)
            most = max(1, self._places * self._devices // length)
            count, size = rows_at_once(len(groups) - first, length, most=most)
            B, T, *_ = self._prefills.fitting(self._divisible(size), length, slots, capacity)
            tokens_BT, segments_BT, positions_BT, slots_BT = (np.zeros((B, T), np.int32) for _ in range(4))
            slots_BT[:] = slots
            for row, slot in enumerate(range(first, first + count)):
                group = groups[slot]
                here = row, slice(group.trunk)
                tokens_BT[here], segments_BT[here], slots_BT[here] = group.trunk_ids, 1, slot
                positions_BT[here] = np.arange(group.trunk)
                self.work.computed += group.trunk
            self.work.places += B * T
            cache = _prefill(self._network, self.params, cache, tokens_BT, segments_BT, positions_BT, slots_BT)
            first += count
        return cache

    def _rows(self, batch: Batch, *, cached: int) -> tuple[Rows, Targets]:
        count = sum(len(ids) for row in batch.rows for item in row.items for _, ids in item.continuations)
        least = (self._divisible(batch.size), batch.length, _predictions(count), cached)
        B, T, P, _ = self._programs.fitting(*least)
        tokens_BT, *parts = (np.zeros((B, T), np.int32) for _ in range(5))
        targets = Targets([], [], [])
        for number, row in enumerate(batch.rows):
            write_row(row, number, arrays=(tokens_BT, *parts), targets=targets)
            self.work.computed += row.length
        self.work.places += B * T
        padded = np.zeros((2, P), np.int32)
        padded[:, : len(targets.ids)] = targets.places, targets.ids
        return Rows(tokens_BT, Parts(*parts), *padded), targets

    def _divisible(self, rows: int) -> int:
        """So many rows, or more that the devices can share."""
        return -(-rows // self._devices) * self._devices


def _summed(targets: Targets, found: tuple[Array, Array]) -> tuple[list[int], list[Score]]:
    """The pairs of a batch, all tokens of each of which are in it, and their scores."""
    numbers, owners = np.unique(targets.pairs, return_inverse=True)
    logprob_P, greedy_P = (np.asarray(a)[: len(owners)] for a in found)
    logprobs, greedy = np.zeros(len(numbers)), np.ones(len(numbers), bool)
    np.add.at(logprobs, owners, logprob_P.astype(np.float64))
    np.logical_and.at(greedy, owners, greedy_P)
    scores = [Score(float(logprob), bool(all_)) for logprob, all_ in zip(logprobs, greedy, strict=True)]
    return numbers.tolist(), scores


def _capacity(trunk: int) -> int:
    """Tokens of a slot of the cache for trunks of up to so many: few sizes, as each has programs of its own."""
    least = max(trunk, 2 * STEP)
    return next(size for size in buckets(2 * least) if size >= least)


def _predictions(count: int) -> int:
    """Places for so many predictions."""
    return max(PREDICTED_AT_ONCE, 1 << (count - 1).bit_length())


@functools.partial(jax.jit, static_argnums=0, donate_argnums=2)
def _prefill(
    network: Network, params: Params, cache: KVCache, tokens_BT, segments_BT, positions_BT, slots_BT
) -> KVCache:
    """The cache with the keys and values of rows of texts."""
    config, options = network.config, network.options
    model = bind(params, config=config, options=options)
    memory = Filling(cache, jnp.asarray(slots_BT), jnp.asarray(positions_BT), jnp.int32(0))
    _, memory = model.apply_layers(
        model.embed(tokens_BT), segment_ids_BT=segments_BT, positions_BT=positions_BT, memory=memory
    )
    return memory.cache


@functools.partial(jax.jit, static_argnums=(0, 1))
def _predict(
    network: Network, branches: bool, params: Params, rows: Rows, trunks: Trunks | None
) -> tuple[Array, Array]:
    """Log-probability of every target, and whether it is the likeliest token, [P]; whole on every process."""
    config, options = network.config, network.options
    model = bind(params, config=config, options=options)
    memory = Branching(rows.parts, trunks, jnp.int32(0), branches, options.attention)
    x_BTD, _ = model.apply_layers(
        model.embed(jnp.asarray(rows.tokens_BT)),
        segment_ids_BT=rows.parts.blocks_BT,
        positions_BT=rows.parts.positions_BT,
        memory=memory,
    )
    hidden_BTD = layouts.all_positions(model.finish(x_BTD))
    hidden_PD = hidden_BTD.reshape(-1, hidden_BTD.shape[-1])[rows.places_P]
    head_DV = model.head_DV.astype(hidden_PD.dtype)

    def predict(inputs: tuple[Array, Array]) -> tuple[Array, Array]:
        hidden_pD, targets_p = inputs
        logits_pV = jnp.einsum("pD,DV->pV", hidden_pD, head_DV, preferred_element_type=jnp.float32)
        logits_pV = constrain(logits_pV, (None, "act_vocab"))
        logits_pV = jnp.where(jnp.arange(logits_pV.shape[-1]) < config.vocab_size, logits_pV, -jnp.inf)
        target_p = jnp.take_along_axis(logits_pV, targets_p[:, None], axis=-1)[:, 0]
        return target_p - jax.nn.logsumexp(logits_pV, axis=-1), jnp.argmax(logits_pV, axis=-1) == targets_p

    chunk = min(PREDICTED_AT_ONCE, len(rows.places_P))
    split = (hidden_PD.reshape(-1, chunk, hidden_PD.shape[-1]), jnp.asarray(rows.targets_P).reshape(-1, chunk))
    found = tuple(a.reshape(-1) for a in jax.lax.map(predict, split))
    mesh = jax.sharding.get_abstract_mesh()
    return jax.lax.with_sharding_constraint(found, NamedSharding(mesh, PartitionSpec()))
