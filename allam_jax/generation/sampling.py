"""Chooses the next token of every slot from its logits. All parameters are arrays: no value makes a new program.

Top-k and top-p are thresholds on the logits, found by bisection of their bit patterns: a sort of the vocabulary would
cost more than the network. Tokens tied with the last one that stays, stay too. Work that no slot asks for is skipped.

Shapes: B slots, V vocabulary (padded), C capacity of a slot; J banned ids and E stop ids of a slot, padded with -1.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt32

from allam_jax.generation.requests import MAX_TOP_LOGPROBS

LANES = 128  # sums and searches over the vocabulary go by rows of so many, which compilers turn into vector code


class SlotSampling(NamedTuple):
    """`requests.Sampling`, for each slot: arrays of JAX, or of NumPy on the host."""

    temperature_B: Float[Any, " B"]
    top_k_B: Int[Any, " B"]
    top_p_B: Float[Any, " B"]
    min_p_B: Float[Any, " B"]
    repetition_penalty_B: Float[Any, " B"]
    presence_penalty_B: Float[Any, " B"]
    frequency_penalty_B: Float[Any, " B"]
    seed_B: UInt32[Any, " B"]
    sample_B: UInt32[Any, " B"]
    prompt_lengths_B: Int[Any, " B"]
    earliest_stops_B: Int[Any, " B"]  # length of the text, with its prompt, at which it may stop
    banned_BJ: Int[Any, "B J"]
    stops_BE: Int[Any, "B E"]
    logprobs_B: Bool[Any, " B"]  # whether log-probabilities are asked for


class Chosen(NamedTuple):
    """The next tokens. Log-probabilities are zeros where no slot asks for them."""

    ids_B: Int[Array, " B"]
    logprobs_B: Float[Array, " B"]
    top_ids_BM: Int[Array, "B M"]
    top_logprobs_BM: Float[Array, "B M"]


def choose(
    logits_BV: Float[Array, "B V"],
    sampling: SlotSampling,
    *,
    tokens_BC: Int[Array, "B C"],
    lengths_B: Int[Array, " B"],
) -> Chosen:
    """The next token of each slot, whose text so far is the first `lengths_B` of its tokens.

    Args:
        logits_BV: float32; -inf for ids that do not exist.
        sampling: a slot at temperature 0 gets its likeliest token, the lowest of equal ones.
        tokens_BC, lengths_B: for penalties, and for the random key, which is a function of seed, sample and length.
    """
    s = sampling
    edits = jnp.any(_penalised(s)) | jnp.any(s.banned_BJ >= 0) | jnp.any(lengths_B < s.earliest_stops_B)
    edited_BV = jax.lax.cond(edits, lambda x: _edited(x, s, tokens_BC, lengths_B), lambda x: x, logits_BV)
    greedy_B = _first_largest(edited_BV)
    ids_B = jax.lax.cond(jnp.any(s.temperature_B > 0), lambda x: _drawn(x, s, lengths_B), lambda x: greedy_B, edited_BV)
    ids_B = jnp.where(s.temperature_B > 0, ids_B, greedy_B)

    def nothing(logits_BV):
        B, M = len(ids_B), min(MAX_TOP_LOGPROBS, logits_BV.shape[1])
        return jnp.zeros(B), jnp.zeros((B, M), jnp.int32), jnp.zeros((B, M))

    logprobs = jax.lax.cond(jnp.any(s.logprobs_B), lambda x: token_logprobs(x, ids_B), nothing, logits_BV)
    return Chosen(ids_B, *logprobs)


def token_logprobs(logits_BV: Array, ids_B: Array) -> tuple[Array, Array, Array]:
    """Log-probability of the ids [B], and the likeliest ids and theirs [B, M], likeliest first."""
    log_probs_BV = logits_BV - jax.nn.logsumexp(logits_BV, axis=-1, keepdims=True)
    top_BM, top_ids_BM = jax.lax.top_k(log_probs_BV, min(MAX_TOP_LOGPROBS, logits_BV.shape[1]))
    return jnp.take_along_axis(log_probs_BV, ids_B[:, None], axis=1)[:, 0], top_ids_BM, top_BM


def filtered(logits_BV: Array, s: SlotSampling) -> Array:
    """Logits divided by the temperature, with -inf for what top-k, top-p and min-p leave out, in this order."""
    logits_BV = logits_BV / jnp.where(s.temperature_B > 0, s.temperature_B, 1.0)[:, None]
    searched = jnp.any((s.top_k_B > 0) | (s.top_p_B < 1))
    logits_BV = jax.lax.cond(searched, lambda x: _nucleus(_likeliest(x, s.top_k_B), s.top_p_B), lambda x: x, logits_BV)
    least_B = jnp.max(logits_BV, axis=-1) + jnp.log(s.min_p_B)  # -inf for 0
    return jnp.where(logits_BV >= least_B[:, None], logits_BV, -jnp.inf)


def _penalised(s: SlotSampling) -> Array:
    return (s.repetition_penalty_B != 1) | (s.presence_penalty_B != 0) | (s.frequency_penalty_B != 0)


def _edited(logits_BV: Array, s: SlotSampling, tokens_BC: Array, lengths_B: Array) -> Array:
    """With the penalties, and without the banned ids."""
    B, V = logits_BV.shape
    rows_B1 = jnp.arange(B)[:, None]

    def count(valid_BC):
        return jnp.zeros((B, V), jnp.int32).at[rows_B1, tokens_BC].add(valid_BC.astype(jnp.int32))

    places_C = jnp.arange(tokens_BC.shape[1])
    answer_BC = (places_C >= s.prompt_lengths_B[:, None]) & (places_C < lengths_B[:, None])
    seen_BV = count(places_C < lengths_B[:, None]) > 0
    penalty_B1 = s.repetition_penalty_B[:, None]
    repeated_BV = jnp.where(logits_BV > 0, logits_BV / penalty_B1, logits_BV * penalty_B1)
    logits_BV = jnp.where(seen_BV & (penalty_B1 != 1), repeated_BV, logits_BV)  # -inf stays
    counts_BV = count(answer_BC)
    logits_BV -= s.presence_penalty_B[:, None] * (counts_BV > 0) + s.frequency_penalty_B[:, None] * counts_BV
    early_B1 = (lengths_B < s.earliest_stops_B)[:, None]
    banned_BX = jnp.concatenate([s.banned_BJ, jnp.where(early_B1, s.stops_BE, -1)], axis=1)
    banned_BX = jnp.where(banned_BX < 0, V, banned_BX)
    return logits_BV.at[rows_B1, banned_BX].set(-jnp.inf, mode="drop")


def _drawn(logits_BV: Array, s: SlotSampling, lengths_B: Array) -> Array:
    """Draws by the inverse of the distribution function: first a row of `LANES` tokens, then one of them."""

    def uniform(seed, sample, length):
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), sample), length)
        return jax.random.uniform(key, (2,))

    uniform_B2 = jax.vmap(uniform)(s.seed_B, s.sample_B, lengths_B)
    logits_BV = filtered(logits_BV, s)
    weights_BRX = _in_rows(jnp.exp(logits_BV - jnp.max(logits_BV, axis=-1, keepdims=True)), padding=0.0)
    row_B = _draw(jnp.sum(weights_BRX, axis=-1), uniform_B2[:, 0])
    weights_BX = jnp.take_along_axis(weights_BRX, row_B[:, None, None], axis=1)[:, 0]
    return row_B * LANES + _draw(weights_BX, uniform_B2[:, 1])


def _draw(weights_BX: Array, uniform_B: Array) -> Array:
    """An index by its weight. One of weight zero is never drawn, whatever rounding does."""
    sums_BX = jnp.cumsum(weights_BX, axis=1)
    beyond_BX = (sums_BX > (uniform_B * sums_BX[:, -1])[:, None]) & (weights_BX > 0)
    first_B, largest_B = jnp.argmax(beyond_BX, axis=1), jnp.argmax(weights_BX, axis=1)
    return jnp.where(jnp.any(beyond_BX, axis=1), first_B, largest_B).astype(jnp.int32)


def _likeliest(logits_BV: Array, top_k_B: Array) -> Array:
    """The `top_k_B` largest stay; 0 keeps all."""
    keys_BRX = _in_rows(_sortable(logits_BV), padding=jnp.iinfo(jnp.int32).min)
    wanted_B = jnp.where(top_k_B > 0, top_k_B, 0)
    count = lambda threshold_B: _sum(keys_BRX >= threshold_B[:, None, None])  # noqa: E731
    threshold_B = _largest(lambda threshold_B: count(threshold_B) >= wanted_B, len(logits_BV))
    kept_BV = (_sortable(logits_BV) >= threshold_B[:, None]) | (top_k_B == 0)[:, None]
    return jnp.where(kept_BV, logits_BV, -jnp.inf)


def _nucleus(logits_BV: Array, top_p_B: Array) -> Array:
    """The fewest likeliest that have the probability `top_p_B` together stay (Holtzman et al. 2020, 1904.09751)."""
    keys_BRX = _in_rows(_sortable(logits_BV), padding=jnp.iinfo(jnp.int32).min)
    weights_BRX = _in_rows(jnp.exp(logits_BV - jnp.max(logits_BV, axis=-1, keepdims=True)), padding=0.0)
    wanted_B = top_p_B * _sum(weights_BRX)
    mass = lambda threshold_B: _sum(jnp.where(keys_BRX >= threshold_B[:, None, None], weights_BRX, 0.0))  # noqa: E731
    threshold_B = _largest(lambda threshold_B: mass(threshold_B) >= wanted_B, len(logits_BV))
    kept_BV = (_sortable(logits_BV) >= threshold_B[:, None]) | (top_p_B >= 1)[:, None]
    return jnp.where(kept_BV, logits_BV, -jnp.inf)


def _sortable(x: Array) -> Array:
    """Integers in the order of the floats."""
    bits = jax.lax.bitcast_convert_type(x, jnp.int32)
    return bits ^ ((bits >> 31) & jnp.int32(0x7FFFFFFF))


def _largest(holds: Callable[[Array], Array], batch: int) -> Array:
    """The largest int32 for which `holds`, in each row; it holds for the smallest, and no more once it has failed."""

    def halve(_, bounds):
        low_B, high_B = bounds  # it holds for low, and fails for high
        # The mean without overflow, rounded up; the difference of the bounds may not fit.
        middle_B = (low_B & high_B) + ((low_B ^ high_B) >> 1)
        middle_B = jnp.where(middle_B == low_B, high_B, middle_B)
        found_B = holds(middle_B)
        return jnp.where(found_B, middle_B, low_B), jnp.where(found_B, high_B, middle_B)

    limits = jnp.iinfo(jnp.int32)
    return jax.lax.fori_loop(0, 33, halve, (jnp.full(batch, limits.min), jnp.full(batch, limits.max)))[0]


def _in_rows(x_BV: Array, *, padding) -> Array:
    """[B, R, LANES], padded at the end."""
    B, V = x_BV.shape
    return jnp.pad(x_BV, ((0, 0), (0, -V % LANES)), constant_values=padding).reshape(B, -1, LANES)


def _sum(x_BRX: Array) -> Array:
    return jnp.sum(jnp.sum(x_BRX, axis=1), axis=1)


def _first_largest(x_BV: Array) -> Array:
    """The index of the largest, the first of equal ones, as `argmax`, which is slow on a CPU."""
    x_BRX = _in_rows(x_BV, padding=-jnp.inf)
    largest_B = jnp.max(jnp.max(x_BRX, axis=1), axis=1)
    index_RX = jnp.arange(x_BRX.shape[1] * LANES, dtype=jnp.int32).reshape(-1, LANES)
    index_BRX = jnp.where(x_BRX == largest_B[:, None, None], index_RX, x_BV.shape[1] - 1)
    return jnp.min(jnp.min(index_BRX, axis=1), axis=1)
