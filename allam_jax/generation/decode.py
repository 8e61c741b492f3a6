"""Continuations of prompts: greedy, or sampled with temperature, top-k and nucleus (top-p) filtering.

The decoder recomputes the whole sequence for every token: simple, the same code path as training, and quadratic. It
is meant for samples and tests, not for serving.
"""

import collections
import contextlib
import functools
import zlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float

from allam_jax.errors import UserError
from allam_jax.generation.settings import GenerateSettings
from allam_jax.model.llama import Params, bind
from allam_jax.model.llama_config import ComputeOptions, LlamaConfig

BUFFER_MULTIPLE = 64  # buffers are rounded up to it, so that prompts of similar length share one compilation


def generate(
    params: Params,
    *,
    config: LlamaConfig,
    options: ComputeOptions,
    prompts: Sequence[Sequence[int]],
    settings: GenerateSettings,
    eos_id: int | None = None,
    seed: int = 0,
    mesh: Mesh | None = None,
) -> list[list[int]]:
    """Continues every prompt until `eos_id` or for `settings.max_new_tokens` tokens.

    What a prompt gets depends on the parameters, the prompt and the seed, and not on the prompts beside it (up to
    rounding: matrix products of other shapes may differ in the last bit). Equal prompts get different samples.

    Args:
        params: of `Llama(config)`; on `mesh` if that is given.
        config: shapes. Prompt and continuation together must fit its `max_position`.
        options: how to compute; dropout is off.
        prompts: token ids, each prompt at least one.
        settings: how tokens are chosen, and how many. Logits are divided by the temperature before they are filtered;
            at temperature 0 the likeliest token is taken. The prompts are not read from here.
        eos_id: ends a continuation; None never does.
        seed: of the samples.
        mesh: the mesh of sharded parameters. With several processes, all call this with equal arguments.

    Returns:
        The new ids of each prompt, without `eos_id`.

    Raises:
        UserError: an empty prompt, an id outside of the vocabulary, or too long a text.
    """
    if not prompts:
        return []
    lengths = _check_prompts(prompts, config=config, max_new_tokens=settings.max_new_tokens)
    buffer = -(-(max(lengths) + settings.max_new_tokens) // BUFFER_MULTIPLE) * BUFFER_MULTIPLE
    tokens_BT = np.zeros((len(prompts), buffer), np.int32)
    for row, prompt in enumerate(prompts):
        tokens_BT[row, : len(prompt)] = prompt

    with jax.set_mesh(mesh) if mesh is not None else contextlib.nullcontext():
        decoded = _decode(
            params,
            tokens_BT,
            np.asarray(lengths, np.int32),
            row_keys(prompts, seed=seed),
            config=config,
            options=options,
            greedy=settings.temperature == 0.0,
            max_new_tokens=settings.max_new_tokens,
            eos_id=-1 if eos_id is None else eos_id,
            temperature=settings.temperature,
            top_k=settings.top_k,
            top_p=settings.top_p,
        )
    tokens_BT, ends_B = map(np.asarray, decoded)
    continuations = [row[start:end].tolist() for row, start, end in zip(tokens_BT, lengths, ends_B, strict=True)]
    return [new[:-1] if new and new[-1] == eos_id else new for new in continuations]


def filter_logits(
    logits_BV: Float[Array, "B V"], *, top_k: Array | int = 0, top_p: Array | float = 1.0
) -> Float[Array, "B V"]:
    """Keeps the `top_k` likeliest tokens, and of these the nucleus of mass `top_p`; sets all other logits to -inf.

    The nucleus is the fewest likeliest tokens that have this probability together, after top-k (Holtzman et al. 2020).
    Between equal logits the lower id counts as likelier. The likeliest token always stays.
    """
    order_BV = jnp.argsort(-logits_BV, axis=-1, stable=True)
    ranks_BV = jnp.argsort(order_BV, axis=-1)
    kept_BV = ranks_BV < jnp.where(top_k > 0, top_k, logits_BV.shape[-1])
    probabilities_BV = jax.nn.softmax(jnp.where(kept_BV, logits_BV, -jnp.inf), axis=-1)
    sorted_BV = jnp.take_along_axis(probabilities_BV, order_BV, axis=-1)
    likelier_BV = jnp.take_along_axis(jnp.cumsum(sorted_BV, axis=-1) - sorted_BV, ranks_BV, axis=-1)
    # At 1 nothing is cut, even where the rounded sum reaches 1 before the last token.
    kept_BV &= (likelier_BV < top_p) | (ranks_BV == 0) | jnp.asarray(top_p >= 1.0)
    return jnp.where(kept_BV, logits_BV, -jnp.inf)


def row_keys(prompts: Sequence[Sequence[int]], *, seed: int) -> Array:
    """A random key for each prompt, from the seed, its ids, and how many equal prompts precede it. Shape [B]."""
    seen: collections.Counter[int] = collections.Counter()
    numbers = []
    for prompt in prompts:
        checksum = zlib.crc32(np.asarray(prompt, np.int32).tobytes())
        numbers.append((checksum, seen[checksum]))
        seen[checksum] += 1
    base = jax.random.key(seed)
    return jax.vmap(lambda pair: jax.random.fold_in(jax.random.fold_in(base, pair[0]), pair[1]))(
        np.asarray(numbers, np.uint32)
    )


@functools.partial(jax.jit, static_argnames=("config", "options", "greedy"))
def _decode(
    params: Params,
    tokens_BT: Array,
    lengths_B: Array,
    keys_B: Array,
    *,
    config: LlamaConfig,
    options: ComputeOptions,
    greedy: bool,
    max_new_tokens: int,
    eos_id: int,
    temperature: float,
    top_k: int,
    top_p: float,
) -> tuple[Array, Array]:
    """Fills the buffer behind the prompts; returns it and where each row now ends."""
    positions_BT = jnp.broadcast_to(jnp.arange(tokens_BT.shape[1]), tokens_BT.shape)
    limits_B = lengths_B + max_new_tokens
    model = bind(params, config=config, options=options)
    head_DV = model.head_DV.astype(options.compute_dtype)

    def next_tokens(tokens_BT: Array, ends_B: Array) -> Array:
        hidden_BTD = model.hidden(
            tokens_BT,
            segment_ids_BT=(positions_BT < ends_B[:, None]).astype(jnp.int32),
            positions_BT=positions_BT,
        )
        last_BD = jnp.take_along_axis(hidden_BTD, (ends_B - 1)[:, None, None], axis=1)[:, 0]
        logits_BV = jnp.einsum("BD,DV->BV", last_BD, head_DV, preferred_element_type=jnp.float32)
        logits_BV = jnp.where(jnp.arange(logits_BV.shape[-1]) < config.vocab_size, logits_BV, -jnp.inf)
        if greedy:
            return jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
        logits_BV = filter_logits(logits_BV / temperature, top_k=top_k, top_p=top_p)
        step_keys_B = jax.vmap(jax.random.fold_in)(keys_B, ends_B)
        return jax.vmap(jax.random.categorical)(step_keys_B, logits_BV).astype(jnp.int32)

    def unfinished(state: tuple[Array, Array, Array]) -> Array:
        return ~jnp.all(state[2])

    def extend(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        tokens_BT, ends_B, done_B = state
        new_B = next_tokens(tokens_BT, ends_B)
        here_BT = (positions_BT == ends_B[:, None]) & ~done_B[:, None]
        tokens_BT = jnp.where(here_BT, new_B[:, None], tokens_BT)
        ends_B = jnp.where(done_B, ends_B, ends_B + 1)
        return tokens_BT, ends_B, done_B | (new_B == eos_id) | (ends_B >= limits_B)

    tokens_BT, ends_B, _ = jax.lax.while_loop(unfinished, extend, (tokens_BT, lengths_B, lengths_B >= limits_B))
    if not jax.sharding.get_abstract_mesh().empty:  # whole on every process
        tokens_BT = jax.lax.with_sharding_constraint(tokens_BT, PartitionSpec())
        ends_B = jax.lax.with_sharding_constraint(ends_B, PartitionSpec())
    return tokens_BT, ends_B


def _check_prompts(prompts: Sequence[Sequence[int]], *, config: LlamaConfig, max_new_tokens: int) -> list[int]:
    for number, prompt in enumerate(prompts, start=1):
        if not len(prompt):
            raise UserError(f"prompt {number} has no tokens: give at least the begin-of-text token")
        if not (min(prompt) >= 0 and max(prompt) < config.vocab_size):
            raise UserError(
                f"prompt {number} has ids from {min(prompt)} to {max(prompt)}, but the model's vocabulary has "
                f"{config.vocab_size}: encode it with the tokenizer of these weights"
            )
        if len(prompt) + max_new_tokens > config.max_position:
            raise UserError(
                f"prompt {number} of {len(prompt)} tokens and max_new_tokens = {max_new_tokens} exceed the model's "
                f"context of {config.max_position}: shorten the prompt or lower max_new_tokens"
            )
    return [len(prompt) for prompt in prompts]
