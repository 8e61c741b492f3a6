"""The compiled programs of the engine: prefill, log-probabilities of a prompt, a burst of decoding, a copied slot.

Each is compiled once for a shape: prefill and log-probabilities for every bucket of lengths, the others once. The cache
is donated, so it exists once. What a program gives back beside the cache is small and whole on every process.

A prefill computes keys and values of all tokens of a prompt but the last. That one is the first that decoding feeds to
the network. So only decoding chooses tokens, and all samples of a request can start from one prefill.

Arguments and results that the host sees are NumPy's arrays there, and JAX's in the programs.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from allam_jax.generation.requests import MAX_TOP_LOGPROBS
from allam_jax.generation.sampling import SlotSampling, choose, token_logprobs
from allam_jax.model import layouts
from allam_jax.model.kv_cache import Continuing, Filling, KVCache
from allam_jax.model.llama import Llama, Params, bind
from allam_jax.model.llama_config import ComputeOptions, LlamaConfig
from allam_jax.model.products import Turned
from allam_jax.parallel.sharding import constrain

SCORED_AT_ONCE = 64  # tokens of a prompt whose logits exist at a time
HEAD_ROWS = 8  # up to so many slots a CPU multiplies the turned head; turning more logits back would cost what it gains


class Prompts(NamedTuple):
    """A row of prompts, one behind the other. Padding has segment 0 and a slot beyond the last one."""

    tokens_BT: Int[Any, "1 T"]
    segment_ids_BT: Int[Any, "1 T"]
    positions_BT: Int[Any, "1 T"]
    slots_BT: Int[Any, "1 T"]


class Texts(NamedTuple):
    """The texts in the slots: their tokens so far, where they end at the latest, and how their tokens are chosen."""

    tokens_BC: Int[Any, "B C"]
    lengths_B: Int[Any, " B"]  # 0: nothing to do
    limits_B: Int[Any, " B"]
    sampling: SlotSampling


class Burst(NamedTuple):
    """What the steps of a burst have given each slot; -1 where a slot had ended."""

    ids_BX: Int[Any, "B X"]
    logprobs_BX: Float[Any, "B X"]
    top_ids_BXM: Int[Any, "B X M"]
    top_logprobs_BXM: Float[Any, "B X M"]


@dataclasses.dataclass(frozen=True)
class Programs:
    """The programs for one network. `burst_steps` are the steps of a burst; all else is in the arguments' shapes.

    `turned` says that the parameters are those of `turned_layers`; a few rows then meet a tied head that way too.
    """

    config: LlamaConfig
    options: ComputeOptions
    burst_steps: int
    turned: bool = False

    def prefill(self, params: Params, cache: KVCache, prompts: Prompts) -> tuple[KVCache, Float[Array, "1 T D"]]:
        """The cache with the prompts' keys and values, and the final hidden states."""
        model = self._model(params)
        memory = Filling(cache, prompts.slots_BT, prompts.positions_BT, jnp.int32(0))
        x_BTD, memory = model.apply_layers(
            model.embed(prompts.tokens_BT),
            segment_ids_BT=prompts.segment_ids_BT,
            positions_BT=prompts.positions_BT,
            memory=memory,
        )
        return memory.cache, model.finish(x_BTD)

    def score(self, params: Params, hidden_BTD: Float[Array, "1 T D"], next_BT: Int[Array, "1 T"]) -> tuple[Array, ...]:
        """Log-probability [T] of every next token of a row, and the likeliest ids and theirs [T, M]."""
        model = self._model(params)
        hidden_TD, T = layouts.all_positions(hidden_BTD)[0], hidden_BTD.shape[1]
        rows = -(-T // SCORED_AT_ONCE) * SCORED_AT_ONCE
        hidden_TD, next_T = jnp.pad(hidden_TD, ((0, rows - T), (0, 0))), jnp.pad(next_BT[0], (0, rows - T))

        def chunk(inputs):
            hidden_XD, next_X = inputs
            return token_logprobs(self._logits(model, hidden_XD), next_X)

        chunks = (hidden_TD.reshape(-1, SCORED_AT_ONCE, hidden_TD.shape[1]), next_T.reshape(-1, SCORED_AT_ONCE))
        scores = jax.lax.map(chunk, chunks)
        return _whole(tuple(a.reshape(rows, *a.shape[2:])[:T] for a in scores))

    def copy(self, cache: KVCache, source: Int[Array, ""], targets_S: Array) -> KVCache:
        """The cache with the content of a slot in others too."""
        return cache.copied(source, targets_S)

    def decode(
        self, params: Params, cache: KVCache, texts: Texts, enough_ended: Int[Array, ""]
    ) -> tuple[KVCache, Burst]:
        """Continues all texts by up to `burst_steps` tokens. A text ends at its limit, or with a stop id.

        So does the burst as soon as so many slots have ended, those without a text included.
        """
        model = self._model(params)
        B, X = len(texts.lengths_B), self.burst_steps
        M = min(MAX_TOP_LOGPROBS, self.config.padded_vocab_size)
        empty = Burst(
            jnp.full((B, X), -1, jnp.int32), jnp.zeros((B, X)), jnp.zeros((B, X, M), jnp.int32), jnp.zeros((B, X, M))
        )
        start = (jnp.int32(0), cache, texts.tokens_BC, texts.lengths_B, texts.lengths_B >= texts.limits_B, empty)

        def unfinished(state) -> Array:
            step, *_, ended_B, _ = state
            return (step < X) & (jnp.sum(ended_B) < enough_ended)

        def advance(state):
            step, cache, tokens_BC, lengths_B, ended_B, burst = state
            logits_BV, cache = self.step(model, cache, tokens_BC, jnp.where(ended_B, 0, lengths_B))
            chosen = choose(logits_BV, texts.sampling, tokens_BC=tokens_BC, lengths_B=lengths_B)
            ids_B = jnp.where(ended_B, -1, chosen.ids_B)
            parts = (ids_B, *chosen[1:])
            burst = Burst(*(a.at[:, step].set(part) for a, part in zip(burst, parts, strict=True)))
            places_B = jnp.where(ended_B, tokens_BC.shape[1], lengths_B)
            tokens_BC = tokens_BC.at[jnp.arange(B), places_B].set(ids_B, mode="drop")
            lengths_B = jnp.where(ended_B, lengths_B, lengths_B + 1)
            stopped_B = jnp.any(ids_B[:, None] == texts.sampling.stops_BE, axis=1)
            return step + 1, cache, tokens_BC, lengths_B, ended_B | stopped_B | (lengths_B >= texts.limits_B), burst

        _, cache, *_, burst = jax.lax.while_loop(unfinished, advance, start)
        return cache, _whole(burst)

    def step(
        self, model: Llama, cache: KVCache, tokens_BC: Int[Array, "B C"], lengths_B: Int[Array, " B"]
    ) -> tuple[Float[Array, "B V"], KVCache]:
        """Logits after the texts, whose last token is fed to the network; slots of length 0 give what is not used."""
        last_B1 = jnp.maximum(lengths_B - 1, 0)[:, None]
        ids_B1 = jnp.take_along_axis(tokens_BC, last_B1, axis=1)
        memory = Continuing(cache, lengths_B - 1, jnp.int32(0), self.options.attention)
        x_BTD, memory = model.apply_layers(
            model.embed(ids_B1), segment_ids_BT=jnp.ones_like(ids_B1), positions_BT=last_B1, memory=memory
        )
        hidden_BTD = layouts.all_positions(model.finish(x_BTD))
        return self._logits(model, hidden_BTD[:, 0]), memory.cache

    def _model(self, params: Params) -> Llama:
        return bind(params, config=self.config, options=self.options)

    def _logits(self, model: Llama, hidden_BD: Array) -> Array:
        head_DV = model.head_DV.astype(hidden_BD.dtype)
        if self.turned and self.config.tie_embeddings and len(hidden_BD) <= HEAD_ROWS:
            logits_BV = Turned(head_DV.T).times(hidden_BD)
        else:
            logits_BV = jnp.einsum("BD,DV->BV", hidden_BD, head_DV, preferred_element_type=jnp.float32)
        logits_BV = constrain(logits_BV, ("batch", "act_vocab"), ("batch", None))
        return jnp.where(jnp.arange(logits_BV.shape[-1]) < self.config.vocab_size, logits_BV, -jnp.inf)


def _whole(tree: Any) -> Any:
    """Whole on every process of a mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    return tree if mesh.empty else jax.lax.with_sharding_constraint(tree, NamedSharding(mesh, PartitionSpec()))
