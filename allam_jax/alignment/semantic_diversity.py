"""How much rows differ in what they say, by a model's embeddings: clusters, nearest neighbours, near-duplicates.

An embedding is the mean of a text's hidden states. What all of them have in common, their mean, is taken away first;
then nearness is the cosine. Rows of one cluster say something similar, and rows that are nearer than a bound nearly the
same, in whatever words.

N rows, D model width, K clusters.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

_BLOCK = 1024  # rows whose cosines with all others are computed at a time


@dataclasses.dataclass(frozen=True)
class Meanings:
    """What the embeddings of some rows show.

    Attributes:
        cluster_N: the cluster of each row; 0 is the largest.
        nearest_N: for each row the number of the one that is nearest to it.
        cosine_N: the cosine of both.
    """

    cluster_N: np.ndarray
    nearest_N: np.ndarray
    cosine_N: np.ndarray

    @classmethod
    def of(cls, states_ND: np.ndarray, *, clusters: int, seed: int) -> "Meanings":
        """Those of at least two rows; `clusters` at most, found by k-means from a start that the seed decides."""
        unit_ND = centred_directions(states_ND)
        nearest_N, cosine_N = nearest_neighbours(unit_ND)
        return cls(_clusters(unit_ND, clusters=clusters, seed=seed), nearest_N, cosine_N)

    def alike(self, *, least: float) -> list[tuple[int, int, float]]:
        """Rows that have a neighbour with at least this cosine, with it; the nearest pairs first, each pair once."""
        found = {
            (min(row, other), max(row, other)): float(self.cosine_N[row])
            for row, other in enumerate(self.nearest_N.tolist())
            if self.cosine_N[row] >= least
        }
        return [(*pair, cosine) for pair, cosine in sorted(found.items(), key=lambda item: (-item[1], item[0]))]

    def summary(self, rows: Sequence[int], *, least: float) -> Mapping[str, Any]:
        """Of some of the rows: their number, of how many clusters of equal size they are, and how near others are.

        `effective_clusters` is the exponential of the entropy of the shares of the clusters.
        """
        shares = np.unique(self.cluster_N[rows], return_counts=True)[1] / len(rows)
        return {
            "rows": len(rows),
            "effective_clusters": math.exp(-float(np.sum(shares * np.log(shares)))),
            "largest_cluster": float(shares.max()),
            "mean_nearest_cosine": float(self.cosine_N[rows].mean()),
            "alike": int(np.sum(self.cosine_N[rows] >= least)),
        }


def centred_directions(states_ND: np.ndarray) -> np.ndarray:
    """The embeddings without their mean, with length 1 (0 for one that is the mean)."""
    centred_ND = states_ND - states_ND.mean(axis=0)
    lengths_N = np.linalg.norm(centred_ND, axis=1, keepdims=True)
    return centred_ND / np.maximum(lengths_N, np.finfo(np.float32).tiny)


def nearest_neighbours(unit_ND: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each row of length 1 the number of the nearest other one, and the cosine of both."""
    nearest_N = np.zeros(len(unit_ND), np.int64)
    cosine_N = np.zeros(len(unit_ND), np.float32)
    for start in range(0, len(unit_ND), _BLOCK):
        cosines_BN = unit_ND[start : start + _BLOCK] @ unit_ND.T
        own_B = np.arange(len(cosines_BN))
        cosines_BN[own_B, start + own_B] = -np.inf
        place = slice(start, start + len(cosines_BN))
        nearest_N[place] = cosines_BN.argmax(axis=1)
        cosine_N[place] = cosines_BN[own_B, nearest_N[place]]
    return nearest_N, np.minimum(cosine_N, 1.0)


def _clusters(unit_ND: np.ndarray, *, clusters: int, seed: int) -> np.ndarray:
    from scipy.cluster.vq import kmeans2  # slow to import

    count = min(clusters, len(np.unique(unit_ND, axis=0)))
    _, labels_N = kmeans2(unit_ND, count, iter=50, minit="++", seed=np.random.default_rng(seed))
    by_size = np.argsort(-np.bincount(labels_N, minlength=count), kind="stable")
    return np.argsort(by_size)[labels_N]
