"""The moving average of the weights against a sum written out, and what it leaves alone."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from allam_jax.training.optimizer import OptimizerState, make_optimizer
from allam_jax.training.settings import GuardSettings, OptimizerSettings
from allam_jax.training.weight_average import averaged, with_average

STEPS = 12


def parameters_and_averages(decay, losses):
    """Trained weights and their average after each step, and the weights of a run without an average."""
    plain = make_optimizer(OptimizerSettings(), schedule=lambda step: 0.1, guard=GuardSettings())
    averaging = with_average(plain, decay=decay)
    start = {"w": jnp.asarray(np.random.default_rng(0).standard_normal(5), jnp.float32)}
    found = []
    for optimizer in (averaging, plain):

        @jax.jit
        def step_fn(params, state, grads, step, loss, optimizer=optimizer):
            norm = optax.tree.norm(grads)
            updates, state = optimizer.update(grads, state, params, step=step, loss=loss, grad_norm=norm)
            return optax.apply_updates(params, updates), state

        params, state = start, optimizer.init(start)
        history = []
        for step, loss in enumerate(losses):
            grads = {"w": jnp.asarray(np.random.default_rng(step + 1).standard_normal(5), jnp.float32)}
            params, state = step_fn(params, state, grads, step, loss)
            average = averaged(state, params)
            history.append((np.asarray(params["w"]), None if average is None else np.asarray(average["w"])))
        found.append(history)
    assert isinstance(state, OptimizerState)
    return found


@pytest.mark.parametrize("decay", [0.5, 0.8, 0.99])
def test_is_the_weighted_sum_of_the_weights_and_changes_no_update(decay):
    with_it, without = parameters_and_averages(decay, [1.0] * STEPS)
    assert [params.tobytes() for params, _ in with_it] == [params.tobytes() for params, _ in without]
    assert all(average is None for _, average in without)
    shares = [max(1 - decay, 1 / n) for n in range(1, STEPS + 1)]
    for n in range(1, STEPS + 1):
        weights = [shares[k] * np.prod([1 - share for share in shares[k + 1 : n]]) for k in range(n)]
        assert sum(weights) == pytest.approx(1)
        expected = sum(weight * params for weight, (params, _) in zip(weights, with_it, strict=False))
        np.testing.assert_allclose(with_it[n - 1][1], expected, rtol=1e-5, atol=1e-6)


def test_a_skipped_update_leaves_every_bit_of_it():
    history, _ = parameters_and_averages(0.8, [1.0, 1.0, np.nan, 1.0])
    assert history[2][1].tobytes() == history[1][1].tobytes() != history[3][1].tobytes()
