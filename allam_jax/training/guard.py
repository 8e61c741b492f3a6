"""Spike guard: a bad batch costs one skipped update, not the run.

An update is skipped (parameters and moments keep their bits) when the loss or the gradient norm is not finite, or lies
above mean + sigma * std of its last `window` finite values (OLMo 2's SkipStep, 2501.00656). Values of skipped steps
enter the statistics too. Only rare values can be spikes: when about n / (1 + sigma^2) of the last n values (4 of 128 at
sigma 6) lie apart from the rest, such values pass, however large they are. So no kind of batch is skipped for ever,
such as the few batches with a rare language. All state is on the devices and part of the optimizer's state: the host
never waits for it, and a resumed run skips what the uninterrupted run would.
"""

from collections import deque
from typing import NamedTuple

import jax
import jax.numpy as jnp

from allam_jax.errors import UserError
from allam_jax.training.settings import GuardSettings


class GuardState(NamedTuple):
    """What the guard remembers; counters are int32, `W` is the window."""

    losses_W: jax.Array  # ring buffers of finite steps, float32
    grad_norms_W: jax.Array
    steps: jax.Array  # updates judged
    finite: jax.Array  # of these, with finite loss and gradient norm
    skipped: jax.Array  # of these, skipped
    in_a_row: jax.Array  # updates skipped since the last accepted one


class SpikeGuard:
    """Decides which updates to make; `init` and `judge` are pure functions of the guard's state."""

    def __init__(self, settings: GuardSettings):
        self._window, self._sigma, self._min_history = settings.window, settings.sigma, settings.min_history

    def init(self) -> GuardState:
        """The first state. Every leaf is its own array: a donated state must not hold a buffer twice."""
        return GuardState(
            losses_W=jnp.zeros(self._window, jnp.float32),
            grad_norms_W=jnp.zeros(self._window, jnp.float32),
            steps=jnp.zeros((), jnp.int32),
            finite=jnp.zeros((), jnp.int32),
            skipped=jnp.zeros((), jnp.int32),
            in_a_row=jnp.zeros((), jnp.int32),
        )

    def judge(self, state: GuardState, *, loss: jax.Array, grad_norm: jax.Array) -> tuple[jax.Array, GuardState]:
        """Whether to make the update (bool scalar) of a step with this mean loss and global gradient norm (scalars)."""
        loss, grad_norm = jnp.asarray(loss, jnp.float32), jnp.asarray(grad_norm, jnp.float32)
        finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
        accept = finite
        if self._sigma > 0:
            accept &= ~self._is_spike(loss, state.losses_W, state.finite)
            accept &= ~self._is_spike(grad_norm, state.grad_norms_W, state.finite)

        slot = state.finite % self._window

        def remember(history_W: jax.Array, value: jax.Array) -> jax.Array:
            return history_W.at[slot].set(jnp.where(finite, value, history_W[slot]))

        return accept, GuardState(
            losses_W=remember(state.losses_W, loss),
            grad_norms_W=remember(state.grad_norms_W, grad_norm),
            steps=state.steps + 1,
            finite=state.finite + finite.astype(jnp.int32),
            skipped=state.skipped + (~accept).astype(jnp.int32),
            in_a_row=jnp.where(accept, 0, state.in_a_row + 1),
        )

    def _is_spike(self, value: jax.Array, history_W: jax.Array, finite: jax.Array) -> jax.Array:
        # The standard deviation is unbiased. Until the window is full, its tail is unused.
        n = jnp.minimum(finite, self._window)
        valid_W = jnp.arange(self._window) < n
        mean = jnp.sum(history_W, where=valid_W) / jnp.maximum(n, 1)
        variance = jnp.sum(jnp.square(history_W - mean), where=valid_W) / jnp.maximum(n - 1, 1)
        return (n >= self._min_history) & (value > mean + self._sigma * jnp.sqrt(variance))


def guard_metrics(state: GuardState) -> dict[str, jax.Array]:
    """Scalars to log after an update: `skipped` (0 or 1), `skipped_in_a_row`, `skipped_share` (of the whole run)."""
    return {
        "skipped": jnp.minimum(state.in_a_row, 1),
        "skipped_in_a_row": state.in_a_row,
        "skipped_share": state.skipped.astype(jnp.float32) / jnp.maximum(state.steps, 1),
    }


class SkipWatch:
    """Stops a run that no longer learns. It looks at every step, some steps late, so that no device waits for it."""

    def __init__(self, limit: int, *, lag: int = 2):
        """Stops at `limit` skipped updates in a row; 0: never."""
        self._limit, self._lag = limit, lag
        self._waiting: deque[tuple[int, jax.Array]] = deque()

    def add(self, step: int, skipped_in_a_row: jax.Array) -> None:
        """Takes the count after `step` updates, and looks at those of `lag` steps before. UserError: see `settle`."""
        if self._limit:
            skipped_in_a_row.copy_to_host_async()
            self._waiting.append((step, skipped_in_a_row))
            self.settle(keep=self._lag)

    def settle(self, *, keep: int = 0) -> None:
        """Looks at all counts but the newest `keep`; UserError at the limit."""
        while len(self._waiting) > keep:
            step, count = self._waiting.popleft()
            if int(count) >= self._limit:
                raise UserError(
                    f"guard.max_in_a_row: the last {int(count)} updates up to step {step} were skipped because loss or "
                    "gradient norm was not finite or spiked; lower schedule.peak_lr, look at the data, or raise "
                    "guard.sigma, and run again: a run goes on from its last checkpoint"
                )
