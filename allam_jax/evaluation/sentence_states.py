"""Mean hidden states of texts: what a model makes of each as a whole.

N texts, B rows of a batch, T tokens of a row, D model width, L layers.
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from allam_jax.generation.slots import buckets
from allam_jax.model.llama import Params, bind
from allam_jax.model.llama_config import ComputeOptions, LlamaConfig

_ROWS = 16
_LONGEST = 256  # tokens of a text that are read


def layer_states(
    params: Params, texts: Sequence[Sequence[int]], *, config: LlamaConfig, options: ComputeOptions
) -> np.ndarray:
    """[L + 1, N, D]: the mean hidden state of each text of ids, of the embedding and after each layer."""
    options = _without_dropout(options)
    found = np.zeros((config.num_layers + 1, len(texts), config.dim), np.float32)
    one_layer = dataclasses.replace(config, num_layers=1)
    for numbers, tokens_BT, segments_BT in _batches(texts):
        x_BTD, mean_BD = _embedded(config, options, params, tokens_BT, segments_BT)
        found[0, numbers] = np.asarray(mean_BD)[: len(numbers)]
        for layer in range(config.num_layers):
            own = params | {"layers": jax.tree.map(lambda w, layer=layer: w[layer : layer + 1], params["layers"])}
            x_BTD, mean_BD = _after_layer(one_layer, options, own, x_BTD, segments_BT)
            found[layer + 1, numbers] = np.asarray(mean_BD)[: len(numbers)]
    return found


def last_states(
    params: Params, texts: Sequence[Sequence[int]], *, config: LlamaConfig, options: ComputeOptions
) -> np.ndarray:
    """[N, D]: the mean final hidden state, from which tokens are predicted, of the first 256 tokens of each text."""
    options = _without_dropout(options)
    found = np.zeros((len(texts), config.dim), np.float32)
    for numbers, tokens_BT, segments_BT in _batches(texts):
        found[numbers] = np.asarray(_final(config, options, params, tokens_BT, segments_BT))[: len(numbers)]
    return found


def _without_dropout(options: ComputeOptions) -> ComputeOptions:
    return dataclasses.replace(
        options, remat="none", dropout_embedding=0.0, dropout_attention=0.0, dropout_residual=0.0
    )


def _batches(texts: Sequence[Sequence[int]]) -> Iterator[tuple[list[int], np.ndarray, np.ndarray]]:
    """Numbers of some texts of like lengths, with their tokens and segments [B, T]."""
    by_length = sorted(range(len(texts)), key=lambda number: len(texts[number]))
    for start in range(0, len(texts), _ROWS):
        numbers = by_length[start : start + _ROWS]
        rows = [list(texts[number][:_LONGEST]) for number in numbers]
        longest = max(map(len, rows))
        T = next(size for size in buckets(2 * longest) if size >= longest)
        tokens_BT, segments_BT = np.zeros((2, _ROWS, T), np.int32)
        for row, ids in enumerate(rows):
            tokens_BT[row, : len(ids)], segments_BT[row, : len(ids)] = ids, 1
        yield numbers, tokens_BT, segments_BT


def _mean(x_BTD: Array, segments_BT: Array) -> Array:
    weights_BT = segments_BT / jnp.maximum(jnp.sum(segments_BT, axis=1, keepdims=True), 1)
    return jnp.einsum("BTD,BT->BD", x_BTD.astype(jnp.float32), weights_BT)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _embedded(config: LlamaConfig, options: ComputeOptions, params: Params, tokens_BT: Array, segments_BT: Array):
    x_BTD = bind(params, config=config, options=options).embed(tokens_BT)
    return x_BTD, _mean(x_BTD, segments_BT)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _after_layer(config: LlamaConfig, options: ComputeOptions, params: Params, x_BTD: Array, segments_BT: Array):
    positions_BT = jnp.broadcast_to(jnp.arange(x_BTD.shape[1]), x_BTD.shape[:2])
    model = bind(params, config=config, options=options)
    x_BTD, _ = model.apply_layers(x_BTD, segment_ids_BT=segments_BT, positions_BT=positions_BT)
    return x_BTD, _mean(x_BTD, segments_BT)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _final(config: LlamaConfig, options: ComputeOptions, params: Params, tokens_BT: Array, segments_BT: Array):
    positions_BT = jnp.broadcast_to(jnp.arange(tokens_BT.shape[1]), tokens_BT.shape)
    model = bind(params, config=config, options=options)
    return _mean(model.hidden(tokens_BT, segment_ids_BT=segments_BT, positions_BT=positions_BT), segments_BT)
