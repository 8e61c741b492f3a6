"""How well hidden states tell which sentence of another language says the same, layer by layer.

A sentence is the mean of its tokens' hidden states after a layer. From these the mean over all sentences of the
language is taken away, because hidden states of a language have much in common. A sentence is found if its translation,
of all sentences of the other language, has the largest cosine with it.

N sentences, D model width, L layers.
"""

import random

import numpy as np

from allam_jax.corpus import catalog

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


def _centred(states_ND: np.ndarray) -> np.ndarray:
    return states_ND - states_ND.mean(axis=0)
