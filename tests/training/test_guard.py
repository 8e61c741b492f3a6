"""The guard against a plain numpy re-implementation, and the bits of a skipped update."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from allam_jax.errors import UserError
from allam_jax.training.guard import SkipWatch, SpikeGuard, guard_metrics
from allam_jax.training.optimizer import make_optimizer
from allam_jax.training.schedules import make_schedule
from allam_jax.training.settings import GuardSettings, OptimizerSettings, ScheduleSettings


def decisions_in_numpy(losses, norms, *, window, sigma, min_history):
    kept_losses, kept_norms, decisions = [], [], []

    def spikes(value, kept):
        recent = np.array(kept[-window:], np.float64)
        return sigma > 0 and len(recent) >= min_history and value > recent.mean() + sigma * recent.std(ddof=1)

    for loss, norm in zip(losses, norms, strict=True):
        finite = bool(np.isfinite(loss) and np.isfinite(norm))
        decisions.append(finite and not spikes(loss, kept_losses) and not spikes(norm, kept_norms))
        if finite:
            kept_losses.append(loss)
            kept_norms.append(norm)
    return np.array(decisions)


@pytest.mark.parametrize(("window", "sigma", "min_history"), [(16, 3.0, 8), (128, 6.0, 64), (7, 6.0, 5), (16, 0.0, 8)])
def test_skips_what_the_rule_says(window, sigma, min_history):
    rng = np.random.default_rng(0)
    n = 600
    losses = 4 * np.exp(-np.arange(n) / 200) + 0.1 * rng.standard_normal(n)
    norms = 1 + 0.2 * np.abs(rng.standard_normal(n))
    for values in (losses, norms):
        values[rng.choice(n, 25, replace=False)] *= rng.choice([1.3, 3.0, 100.0], 25)
        values[rng.choice(n, 4, replace=False)] = [np.nan, np.inf, -np.inf, np.nan]
    losses, norms = losses.astype(np.float32), norms.astype(np.float32)
    expected = decisions_in_numpy(losses, norms, window=window, sigma=sigma, min_history=min_history)
    assert 0 < np.sum(~expected) < n / 2

    guard = SpikeGuard(GuardSettings(window=window, sigma=sigma, min_history=min_history))

    def step(state, inputs):
        accept, state = guard.judge(state, loss=inputs[0], grad_norm=inputs[1])
        return state, (accept, guard_metrics(state))

    final, (accepted, metrics) = jax.lax.scan(step, guard.init(), (losses, norms))
    np.testing.assert_array_equal(accepted, expected)
    np.testing.assert_array_equal(metrics["skipped"], ~expected)
    np.testing.assert_allclose(metrics["skipped_share"], np.cumsum(~expected) / (np.arange(n) + 1), rtol=1e-6)
    assert int(final.steps) == n
    assert int(final.finite) == np.sum(np.isfinite(losses) & np.isfinite(norms))
    assert int(final.skipped) == np.sum(~expected)
    in_a_row = np.zeros(n, int)
    for i, accepted in enumerate(expected):
        in_a_row[i] = 0 if accepted else 1 + (in_a_row[i - 1] if i else 0)
    np.testing.assert_array_equal(metrics["skipped_in_a_row"], in_a_row)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", ["loss", "grads"])
def test_a_skipped_update_changes_no_bit(bad, where):
    params = {"a": np.array([-0.0, 0.0, 1e-42, -1.5, 3e38], np.float32), "scale": np.ones(3, jnp.bfloat16)}
    schedule = make_schedule(ScheduleSettings(name="constant", peak_lr=0.1, warmup_steps=0), total_steps=9)
    optimizer = make_optimizer(OptimizerSettings(), schedule=schedule, guard=GuardSettings())

    # As users run it: unoptimised (see tests/conftest.py), adding -0 flushes a subnormal parameter to 0.
    @functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 3})
    def step(params, state, grads, loss):
        updates, state = optimizer.update(grads, state, params, step=0, loss=loss, grad_norm=optax.tree.norm(grads))
        return optax.apply_updates(params, updates), state

    good = jax.tree.map(lambda p: np.full_like(p, 0.1), params)
    before_params, before = step(params, optimizer.init(params), good, 1.0)
    before_params["a"] = jnp.asarray(params["a"])  # signed zero and subnormal again
    before.mu["a"] = jnp.array([-0.0, 0.0, 1e-37, -1.5, 3e38], jnp.float32)  # CPU arithmetic never gives subnormals
    before.nu["a"] = jnp.abs(before.mu["a"])
    bad_grads = {**good, "a": np.full(5, bad, np.float32)} if where == "grads" else good
    after_params, after = step(before_params, before, bad_grads, bad if where == "loss" else 1.0)
    assert int(after.guard.skipped) == 1
    kept = [
        (params, state.mu, state.nu, state.updates)
        for params, state in ((before_params, before), (after_params, after))
    ]
    for old, new in zip(*map(jax.tree.leaves, kept), strict=True):
        assert np.asarray(old).tobytes() == np.asarray(new).tobytes()


def judged(losses, **settings):
    """Which of these steps are accepted, gradient norms all equal."""
    guard = SpikeGuard(GuardSettings(**settings))

    def step(state, loss):
        accept, state = guard.judge(state, loss=loss, grad_norm=jnp.ones(()))
        return state, accept

    return np.asarray(jax.lax.scan(step, guard.init(), np.asarray(losses, np.float32))[1])


@pytest.mark.parametrize(
    ("change", "key"), [({"window": 1}, "window"), ({"min_history": 500}, "min_history"), ({"sigma": -1.0}, "sigma")]
)
def test_errors_name_the_key(change, key):
    with pytest.raises(UserError, match=rf"^config\.guard\.{key} = "):
        GuardSettings(**change)


@pytest.mark.parametrize("height", [5.0, 1e3])
def test_a_kind_of_batch_that_comes_again_is_not_a_spike_for_ever(height):
    """One batch in 16 holds another language. With m of n values apart by any height, mean + 6 std lies above them from
    sqrt((n - m) / m) = 6 on: m = n / 37."""
    losses = 1 + 0.05 * np.random.default_rng(0).standard_normal(800)
    rare = np.arange(800) % 16 == 15
    losses[200:][rare[200:]] += height
    accepted = judged(losses, window=128, sigma=6.0, min_history=32)
    assert accepted[~rare].all()
    late = accepted[200:][rare[200:]]
    assert list(late[:3]) == [False, False, False]
    assert late[4:].all()


def test_a_level_that_stays_higher_is_taken_as_the_new_one():
    losses = np.concatenate([np.full(128, 2.0), np.full(40, 5.0)]) + 0.01 * np.random.default_rng(1).standard_normal(
        168
    )
    accepted = judged(losses, window=128, sigma=6.0, min_history=32)
    assert accepted[:128].all()
    assert 3 <= np.sum(~accepted[128:]) <= 4
    assert accepted[132:].all()


def test_many_skips_in_a_row_stop_the_run():
    never, watch = SkipWatch(0), SkipWatch(3)
    for step, count in enumerate((0, 1, 2, 0, 1, 2, 3, 4), start=1):
        never.add(step, jnp.int32(1000 + count))
        watch.add(step, jnp.int32(count))  # looks at step 6 at last
    with pytest.raises(UserError, match=r"guard\.max_in_a_row.*3 updates up to step 7") as error:
        watch.add(9, jnp.int32(0))
    assert "\n" not in str(error.value)
    late = SkipWatch(3)
    late.add(1, jnp.int32(3))
    with pytest.raises(UserError, match="up to step 1 "):
        late.settle()
