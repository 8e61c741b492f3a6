"""Spike guard: a bad batch costs one skipped update, not the run.

An update is skipped (parameters and moments keep their bits) when the loss or the gradient norm is not finite, or lies
above mean + sigma * std of its last `window` accepted values. The idea is OLMo 2's SkipStep (2501.00656); here only
accepted steps enter the statistics, so that a spike does not widen the gate for the next one. All state is on device
and part of the optimizer state: no host sync, and a resumed run guards as the uninterrupted one would.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from allam_jax.errors import UserError


class GuardState(NamedTuple):
    """What the guard remembers; scalars are int32, `W` is the window."""

    losses_W: jax.Array  # ring buffers of accepted steps, float32
    grad_norms_W: jax.Array
    accepted: jax.Array  # updates made
    skipped: jax.Array  # updates skipped, over the whole run
    in_a_row: jax.Array  # updates skipped since the last accepted one
    inner: Any  # state of the guarded transformation


def skip_spikes(
    inner: optax.GradientTransformationExtraArgs, *, window: int = 128, sigma: float = 6.0, min_history: int = 64
) -> optax.GradientTransformationExtraArgs:
    """Wraps `inner`; `update(grads, state, params, *, loss, grad_norm, **extra)` skips spiky and non-finite steps.

    Args:
        inner: the transformation to guard; `extra` is handed on to it, with `grad_norm`.
        window: accepted steps that the mean and standard deviation (unbiased) are taken over.
        sigma: how many standard deviations above the mean count as a spike; 0 skips non-finite steps only.
        min_history: accepted steps needed before anything counts as a spike.
    """
    if window < 2:
        raise UserError(f"guard.window: {window} is too short; expected at least 2 steps")
    if not 2 <= min_history <= window:
        raise UserError(f"guard.min_history: {min_history} is outside [2, guard.window = {window}]")
    if not sigma >= 0:
        raise UserError(f"guard.sigma: {sigma} is negative; expected 0 (off) or more")

    def init(params: optax.Params) -> GuardState:
        zero = jnp.zeros((), jnp.int32)
        empty_W = jnp.zeros(window, jnp.float32)
        return GuardState(empty_W, empty_W, accepted=zero, skipped=zero, in_a_row=zero, inner=inner.init(params))

    def is_spike(value: jax.Array, history_W: jax.Array, accepted: jax.Array) -> jax.Array:
        # Until the window is full its tail is unused: weigh it with zero.
        n = jnp.minimum(accepted, window)
        valid_W = jnp.arange(window) < n
        mean = jnp.sum(history_W, where=valid_W) / jnp.maximum(n, 1)
        variance = jnp.sum(jnp.square(history_W - mean), where=valid_W) / jnp.maximum(n - 1, 1)
        return (n >= min_history) & (value > mean + sigma * jnp.sqrt(variance))

    def update(
        grads: optax.Updates,
        state: GuardState,
        params: optax.Params | None = None,
        *,
        loss: jax.Array,
        grad_norm: jax.Array,
        **extra: Any,
    ) -> tuple[optax.Updates, GuardState]:
        loss, grad_norm = jnp.asarray(loss, jnp.float32), jnp.asarray(grad_norm, jnp.float32)
        accept = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
        if sigma > 0:
            accept &= ~is_spike(loss, state.losses_W, state.accepted)
            accept &= ~is_spike(grad_norm, state.grad_norms_W, state.accepted)

        # A select, not a conditional: it fuses into the elementwise update, which reads and writes the same arrays
        # anyway, so guarding costs nothing. A conditional would break the fusion and copy the state.
        updates, inner_state = inner.update(grads, state.inner, params, grad_norm=grad_norm, **extra)
        # Adding -0.0 keeps every bit of a parameter; adding +0.0 would turn -0.0 into +0.0.
        updates = jax.tree.map(lambda u: jnp.where(accept, u, -jnp.zeros_like(u)), updates)
        inner_state = jax.tree.map(lambda new, old: jnp.where(accept, new, old), inner_state, state.inner)

        slot = state.accepted % window
        one = accept.astype(jnp.int32)

        def remember(history_W: jax.Array, value: jax.Array) -> jax.Array:
            return history_W.at[slot].set(jnp.where(accept, value, history_W[slot]))

        return updates, GuardState(
            losses_W=remember(state.losses_W, loss),
            grad_norms_W=remember(state.grad_norms_W, grad_norm),
            accepted=state.accepted + one,
            skipped=state.skipped + (1 - one),
            in_a_row=jnp.where(accept, 0, state.in_a_row + 1),
            inner=inner_state,
        )

    return optax.GradientTransformationExtraArgs(init, update)  # type: ignore[arg-type]


def guard_metrics(state: GuardState) -> dict[str, jax.Array]:
    """Scalars to log after an update: `skipped` (0 or 1), `skipped_in_a_row`, `skipped_share` (of the whole run)."""
    seen = jnp.maximum(state.accepted + state.skipped, 1)
    return {
        "skipped": jnp.minimum(state.in_a_row, 1),
        "skipped_in_a_row": state.in_a_row,
        "skipped_share": state.skipped.astype(jnp.float32) / seen,
    }


def check_skips(skipped_in_a_row: int, *, limit: int, step: int) -> None:
    """Stops a run that no longer learns: UserError at `limit` skipped updates in a row (host side; 0 = never)."""
    if limit and skipped_in_a_row >= limit:
        raise UserError(
            f"guard.max_in_a_row: the last {skipped_in_a_row} updates up to step {step} were skipped because loss or "
            "gradient norm was not finite or spiked; lower schedule.peak_lr, look at the data, or raise guard.sigma, "
            "then resume from the last checkpoint"
        )
