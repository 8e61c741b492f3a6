"""The arithmetic of merges against formulas in float64, and against runs that really decay."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from allam_jax.errors import UserError
from allam_jax.training.schedules import make_schedule
from allam_jax.training.settings import ScheduleSettings
from allam_jax.weights.merging import (
    decay_coefficients,
    normalised,
    rounded,
    slerp_coefficients,
    update_weights,
    weighted_sum,
)
from allam_jax.weights.settings import DECAY_SHAPES

STEPS = [40, 43, 44, 50, 57]  # unevenly spaced checkpoints


def decay(shape, *, length, final_fraction=0.1):
    schedule = make_schedule(
        ScheduleSettings(
            name="wsd",
            peak_lr=1.0,
            warmup_steps=0,
            decay_start=0,
            decay_steps=length,
            decay_shape=shape,
            final_fraction=final_fraction,
        ),
        total_steps=length,
    )
    return lambda updates: np.asarray(schedule(updates))


# -- coefficients ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", DECAY_SHAPES)
def test_coefficients_are_the_falls_of_the_weights(shape):
    weights = update_weights(STEPS, shape=decay(shape, length=17))
    coefficients = decay_coefficients(weights)
    padded = [1.0, *weights, 0.0]
    np.testing.assert_allclose(coefficients, [padded[j] - padded[j + 1] for j in range(5)], rtol=0, atol=1e-15)
    assert abs(sum(coefficients) - 1) < 1e-15
    assert min(coefficients) >= 0
    # The weight of an update is what all later checkpoints have of it.
    np.testing.assert_allclose([sum(coefficients[i:]) for i in range(1, 5)], weights, atol=1e-15)


def test_a_linear_decay_by_hand():
    """Updates at 1, 3/4, 1/2, 1/4 of the learning rate, checkpoints after 0, 1, 2 and 4 of them."""
    weights = update_weights([0, 1, 2, 4], shape=decay("linear", length=4, final_fraction=0.0))
    np.testing.assert_allclose(weights, [1, 3 / 4, 3 / 8], atol=1e-7)
    np.testing.assert_allclose(decay_coefficients(weights), [0, 1 / 4, 3 / 8, 3 / 8], atol=1e-7)


def test_no_decay_takes_the_last_checkpoint():
    assert decay_coefficients(update_weights([3, 5, 9], shape=np.ones_like)) == [0, 0, 1]


def test_steps_must_increase():
    with pytest.raises(UserError, match=r"have steps \[4, 4\]; each must be later"):
        update_weights([4, 4], shape=np.ones_like)


def test_shares():
    assert normalised([1, 3]) == [0.25, 0.75]
    assert normalised([3, -1]) == [1.5, -0.5]
    for bad in ([0.0, 0.0], [1.0, -1.0], [1.0, float("nan")], [float("inf"), 1.0]):
        with pytest.raises(UserError, match="no positive sum"):
            normalised(bad)


# -- a merge of the trunk is the run with weighted updates -------------------------------------------------------------


def regression_run(*, learning_rates, gradient=None):
    """SGD on a linear regression, float64: the iterates and the gradients. `gradient` replaces the problem's own."""
    rng = np.random.default_rng(0)
    x, target = rng.standard_normal((32, 6)), rng.standard_normal(32)
    theta = rng.standard_normal(6)
    iterates, gradients = [theta], []
    for update, rate in enumerate(learning_rates):
        rows = rng.integers(0, 32, size=4)  # the same for every schedule
        g = x[rows].T @ (x[rows] @ theta - target[rows]) / 4 if gradient is None else gradient(update)
        theta = theta - rate * g
        iterates.append(theta)
        gradients.append(g)
    return iterates, gradients


@pytest.mark.parametrize("shape", DECAY_SHAPES)
@pytest.mark.parametrize("checkpoints", [list(range(18)), [0, 3, 4, 10, 17]])
def test_merging_weights_the_updates_of_the_trunk(shape, checkpoints):
    iterates, gradients = regression_run(learning_rates=[0.05] * 17)
    weights = update_weights(checkpoints, shape=decay(shape, length=17))
    merged = weighted_sum([iterates[step] for step in checkpoints], decay_coefficients(weights))
    expected = iterates[0].copy()
    for (start, stop), weight in zip(itertools.pairwise(checkpoints), weights, strict=True):
        for gradient in gradients[start:stop]:
            expected -= 0.05 * weight * gradient
    np.testing.assert_allclose(merged, expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("shape", DECAY_SHAPES)
def test_where_gradients_do_not_depend_on_the_parameters_merging_is_decaying(shape):
    rng = np.random.default_rng(1)
    fixed = rng.standard_normal((17, 6))
    shares = decay(shape, length=17)(np.arange(17)).astype(np.float64)
    trunk, _ = regression_run(learning_rates=[0.05] * 17, gradient=lambda update: fixed[update])
    decayed, _ = regression_run(learning_rates=0.05 * shares, gradient=lambda update: fixed[update])
    weights = update_weights(range(18), shape=decay(shape, length=17))
    merged = weighted_sum(trunk, decay_coefficients(weights))
    np.testing.assert_allclose(merged, decayed[-1], rtol=0, atol=1e-14)
    assert np.abs(trunk[-1] - decayed[-1]).max() > 0.05


def test_merging_lowers_the_noise_of_a_constant_learning_rate():
    """What it is for: on the regression the merge of the trunk is nearer to the optimum than its last iterate."""
    rng = np.random.default_rng(0)
    x, target = rng.standard_normal((32, 6)), rng.standard_normal(32)
    optimum = np.linalg.lstsq(x, target, rcond=None)[0]
    iterates, _ = regression_run(learning_rates=[0.05] * 600)
    steps = list(range(400, 601, 5))
    weights = update_weights(steps, shape=decay("one_minus_sqrt", length=200, final_fraction=0.0))
    merged = weighted_sum([iterates[step] for step in steps], decay_coefficients(weights))
    assert np.linalg.norm(merged - optimum) < 0.7 * np.mean(
        [np.linalg.norm(iterates[step] - optimum) for step in steps]
    )


# -- sums --------------------------------------------------------------------------------------------------------------


def awkward(dtype, size=4000):
    """Random bits: subnormal numbers, signed zeros, the largest ones; no NaN and no infinity."""
    dtype = jnp.dtype(dtype)
    bits = np.random.default_rng(0).integers(0, 256, size * dtype.itemsize, dtype=np.uint8)
    values = bits.view(dtype)
    with np.errstate(all="ignore"):
        values = values[np.isfinite(values)]
    return np.concatenate([values, np.array([-0.0, 0.0], dtype)])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("count", [2, 3, 7, 10])
def test_the_average_of_identical_arrays_is_the_array(dtype, count):
    array = awkward(dtype)
    average = rounded(weighted_sum([array] * count, normalised([1.0] * count)), array.dtype, name="x")
    assert average.tobytes() == array.tobytes()


def test_sums_are_kept_in_float64():
    ones = np.ones(5, np.float32)
    small = np.full(5, 2.0**-40, np.float32)
    total = weighted_sum([ones, small, -ones], [1.0, 1.0, 1.0])
    assert total.dtype == np.float64
    np.testing.assert_array_equal(total, small.astype(np.float64))


def test_results_that_are_not_finite():
    with pytest.raises(UserError, match="layer is not finite: a model holds NaN or infinity") as error:
        rounded(np.array([1.0, np.nan]), np.dtype(np.float32), name="layer")
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="do not fit float16"):
        rounded(np.array([1e5]), np.dtype(np.float16), name="layer")


# -- SLERP -------------------------------------------------------------------------------------------------------------


def great_circle(a, b, t):
    """Rotates a's direction towards b's in their plane by t times the angle, with norms and lengths handled apart."""
    u = a / np.linalg.norm(a)
    v = b / np.linalg.norm(b)
    angle = 2 * np.arctan2(np.linalg.norm(u - v), np.linalg.norm(u + v))
    normal = v - np.dot(u, v) * u
    normal /= np.linalg.norm(normal)
    return np.cos(t * angle) * u + np.sin(t * angle) * normal


@pytest.mark.parametrize("t", [0.0, 0.25, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("similarity", [-0.9, 0.0, 0.5, 0.98])
def test_slerp_of_directions_is_on_the_great_circle(t, similarity):
    rng = np.random.default_rng(2)
    a = rng.standard_normal(1000)
    a /= np.linalg.norm(a)
    b = similarity * a + np.sqrt(1 - similarity**2) * great_circle(a, rng.standard_normal(1000), 1.0)
    b /= np.linalg.norm(b)
    parts = [slice(0, 300), slice(300, 301), slice(301, 1000)]
    c, d = slerp_coefficients([(a[part], b[part]) for part in parts], t=t)
    np.testing.assert_allclose(c * a + d * b, great_circle(a, b, t), atol=1e-12)
    assert slerp_coefficients([(3 * a, 0.1 * b)], t=t) == pytest.approx((c, d), abs=1e-12)  # norms do not matter


def test_slerp_of_parallel_and_short_vectors_is_linear():
    a = np.random.default_rng(3).standard_normal(50)
    assert slerp_coefficients([(a, 2 * a)], t=0.3) == (0.7, 0.3)
    assert slerp_coefficients([(a, -a)], t=0.3) == (0.7, 0.3)
    zeros = np.zeros(50)
    c, d = slerp_coefficients([(a, zeros)], t=0.3)  # no angle is known: as at right angles
    assert (c, d) == pytest.approx((np.cos(0.15 * np.pi), np.sin(0.15 * np.pi)))
