"""The arithmetic of merging models: the coefficients, and the sums, in float64 for every stored dtype.

A merge is a weighted sum of the parameters, sum_j c_j theta_j with sum_j c_j = 1, or a spherical interpolation.

**Merging instead of decaying** (WSM: Tian et al. 2025, 2507.17634). A run with constant learning rate makes updates g_i
between its checkpoints: theta_j = theta_0 - sum_{i<=j} g_i. Scale the i-th updates by w_i, the decayed learning rate as
a share of the constant one, with 1 = w_0 >= w_1 >= ... >= w_n >= 0. The result is

    theta_0 - sum_i w_i g_i = sum_{j=0..n} c_j theta_j      with c_j = w_j - w_{j+1} and w_{n+1} = 0

because the coefficient of g_i on the right is sum_{j>=i} c_j = w_i. The formula neglects that a run with smaller steps
would have computed its later updates at other parameters.
"""

import math
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from allam_jax.errors import UserError

# As in mergekit: vectors with a larger cosine are interpolated linearly, and shorter vectors are not normalised.
_PARALLEL = 0.9995
_SHORT = 1e-8


def normalised(weights: Sequence[float]) -> list[float]:
    """The weights divided by their sum; UserError unless they are finite and their sum is positive."""
    total = math.fsum(weights)
    if not all(math.isfinite(weight) for weight in weights) or total <= 0:
        raise UserError(f"merge: the weights {list(weights)} have no positive sum; give at least one above 0")
    return [weight / total for weight in weights]


def update_weights(steps: Sequence[int], *, shape: Callable[[np.ndarray], np.ndarray]) -> list[float]:
    """w_1 ... w_n: the mean of a decay over the updates between each two neighbouring checkpoints.

    Args:
        steps: number of updates before each of the n + 1 checkpoints, increasing. The decay begins at the first.
        shape: takes an array of updates u of the decay (u = 0 is the first update after the first checkpoint); returns
            their learning rates as shares of the constant one.

    Raises:
        UserError: the steps do not increase.
    """
    if any(later <= earlier for earlier, later in zip(steps, steps[1:], strict=False)):
        raise UserError(f"merge: the checkpoints have steps {list(steps)}; each must be later than the one before")
    factors = np.asarray(shape(np.arange(steps[-1] - steps[0])), np.float64)
    starts = np.asarray(steps) - steps[0]
    return [float(np.mean(factors[start:stop])) for start, stop in zip(starts, starts[1:], strict=False)]


def decay_coefficients(weights: Sequence[float]) -> list[float]:
    """c_0 ... c_n from w_1 ... w_n (see the module). They sum to one; none is negative if the weights never rise."""
    all_weights = [1.0, *weights, 0.0]
    return [now - later for now, later in zip(all_weights, all_weights[1:], strict=False)]


def weighted_sum(arrays: Iterable[np.ndarray], coefficients: Sequence[float]) -> np.ndarray:
    """sum_j c_j a_j of float arrays of one shape, in float64. If `arrays` is lazy, only one is in memory at a time.

    If all arrays are equal, float32 or narrower, and the coefficients sum to one, rounding the result to their dtype
    gives them back exactly.
    """
    total: np.ndarray | None = None
    for array, coefficient in zip(arrays, coefficients, strict=True):
        term = array.astype(np.float64)
        term *= coefficient
        if total is None:
            total = term
        else:
            total += term
    assert total is not None
    return total


def slerp_coefficients(pairs: Iterable[tuple[np.ndarray, np.ndarray]], *, t: float) -> tuple[float, float]:
    """The coefficients of tensors a and b in their spherical interpolation at t (0 = a, 1 = b).

    With theta the angle between them as flat vectors: sin((1 - t) theta) / sin(theta) and sin(t theta) / sin(theta)
    (Shoemake 1985); 1 - t and t if they are nearly parallel or opposite. The result is not renormalised.

    Args:
        pairs: corresponding parts of a and b that together cover both.
        t: in [0, 1].
    """
    aa = bb = ab = 0.0
    for a, b in pairs:
        # BLAS is not used here, because its order of summation depends on the number of threads.
        a64, b64 = np.ravel(a).astype(np.float64), np.ravel(b).astype(np.float64)
        aa += float(np.sum(a64 * a64))
        bb += float(np.sum(b64 * b64))
        ab += float(np.sum(a64 * b64))
    norms = [math.sqrt(square) if math.sqrt(square) > _SHORT else 1.0 for square in (aa, bb)]
    cosine = min(max(ab / norms[0] / norms[1], -1.0), 1.0)
    if abs(cosine) > _PARALLEL:
        return 1 - t, t
    theta = math.acos(cosine)
    return math.sin((1 - t) * theta) / math.sin(theta), math.sin(t * theta) / math.sin(theta)


def rounded(values: np.ndarray, dtype: np.dtype, *, name: str) -> np.ndarray:
    """`values` (float64) in `dtype`; UserError (naming the tensor) unless all results are finite."""
    with np.errstate(over="ignore"):  # the check below reports an overflow
        result = values.astype(dtype)
    if not np.isfinite(result).all():
        raise UserError(
            f"merge: {name} is not finite: a model holds NaN or infinity there, or the values do not fit {dtype}; "
            "leave that model out, or choose another config.export.dtype"
        )
    return result
