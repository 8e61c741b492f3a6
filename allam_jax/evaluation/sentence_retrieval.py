"""How well hidden states tell which sentence of another language says the same, layer by layer.

A sentence is the mean of its tokens' hidden states after a layer. From these the mean over all sentences of the
language is taken away, because hidden states of a language have much in common. A sentence is found if its translation,
of all sentences of the other language, has the largest cosine with it.

N sentences, B rows of a batch, T tokens of a row, D model width, L layers.
"""

import dataclasses
import functools
import random
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from allam_jax.corpus import catalog
from allam_jax.generation.slots import buckets
from allam_jax.model.llama import Params, bind
from allam_jax.model.llama_config import ComputeOptions, LlamaConfig

_ROWS = 16
_LONGEST = 256  # tokens of a sentence that are read
_TRANSLATIONS = {"en": "web_en", "ar": "van_dyke_ar"}  # of the catalog


def aligned_verses(count: int, *, seed: int) -> dict[str, list[str]]:
    """So many verses of the Bible in each language, the same ones in the same order, drawn by the seed."""
    chapters = {
        name: {d.id: d.text.splitlines() for d in catalog.documents(_TRANSLATIONS[name])} for name in ("en", "ar")
    }
    pairs = [
        pair
        for chapter, verses in chapters["en"].items()
        if len(verses) == len(chapters["ar"].get(chapter, ()))
        for pair in zip(verses, chapters["ar"][chapter], strict=True)
    ]
    pairs = [pair for pair in pairs if all(len(verse.split()) > 3 for verse in pair)]
    drawn = random.Random(seed).sample(pairs, min(count, len(pairs)))
    return dict(zip(_TRANSLATIONS, map(list, zip(*drawn, strict=True)), strict=True))


def retrieval_accuracies(first_LND: np.ndarray, second_LND: np.ndarray) -> list[float]:
    """For each layer the share of sentences whose translation is found, the mean of both directions."""
    accuracies = []
    for pair in zip(first_LND, second_LND, strict=True):
        a_ND, b_ND = (centred / np.linalg.norm(centred, axis=1, keepdims=True) for centred in map(_centred, pair))
        cosines_NN = a_ND @ b_ND.T
        right = np.arange(len(cosines_NN))
        accuracies.append(float(np.mean([np.mean(cosines_NN.argmax(axis=axis) == right) for axis in (0, 1)])))
    return accuracies


def sentence_states(
    params: Params, sentences: Sequence[Sequence[int]], *, config: LlamaConfig, options: ComputeOptions
) -> np.ndarray:
    """[L + 1, N, D]: the mean hidden state of each sentence of ids, of the embedding and after each layer."""
    options = dataclasses.replace(
        options, remat="none", dropout_embedding=0.0, dropout_attention=0.0, dropout_residual=0.0
    )
    found = np.zeros((config.num_layers + 1, len(sentences), config.dim), np.float32)
    one_layer = dataclasses.replace(config, num_layers=1)
    by_length = sorted(range(len(sentences)), key=lambda number: len(sentences[number]))
    for start in range(0, len(sentences), _ROWS):
        numbers = by_length[start : start + _ROWS]
        rows = [list(sentences[number][:_LONGEST]) for number in numbers]
        longest = max(map(len, rows))
        T = next(size for size in buckets(2 * longest) if size >= longest)
        tokens_BT, segments_BT = np.zeros((2, _ROWS, T), np.int32)
        for row, ids in enumerate(rows):
            tokens_BT[row, : len(ids)], segments_BT[row, : len(ids)] = ids, 1
        x_BTD, mean_BD = _embedded(config, options, params, tokens_BT, segments_BT)
        found[0, numbers] = np.asarray(mean_BD)[: len(numbers)]
        for layer in range(config.num_layers):
            own = params | {"layers": jax.tree.map(lambda w, layer=layer: w[layer : layer + 1], params["layers"])}
            x_BTD, mean_BD = _after_layer(one_layer, options, own, x_BTD, segments_BT)
            found[layer + 1, numbers] = np.asarray(mean_BD)[: len(numbers)]
    return found


def _centred(states_ND: np.ndarray) -> np.ndarray:
    return states_ND - states_ND.mean(axis=0)


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
