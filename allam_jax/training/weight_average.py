"""An exponential moving average of the trained weights, which lies in the optimizer's state.

After the n-th update, which leads to parameters p:

    average <- d * average + (1 - d) * p        d = min(decay, 1 - 1 / n)

So the first 1 / (1 - decay) updates count equally, and the parameters before the first do not count.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from allam_jax.training.guard import GuardState
from allam_jax.training.optimizer import OptimizerState


class AveragingState(NamedTuple):
    """The fields of `OptimizerState`, and the average: two types, so that states without one are as they were."""

    mu: Any
    nu: Any
    updates: jax.Array
    guard: GuardState
    learning_rate: jax.Array
    average: Any  # like the trained parameters, float32


def with_average(
    optimizer: optax.GradientTransformationExtraArgs, *, decay: float
) -> optax.GradientTransformationExtraArgs:
    """The same updates, and a state with the average of the parameters; skipped updates leave that as it was."""

    def init(params: optax.Params) -> AveragingState:
        average = jax.tree.map(lambda p: jnp.array(p, jnp.float32, copy=True), params)  # the step donates both
        return AveragingState(**optimizer.init(params)._asdict(), average=average)

    def update(
        grads: optax.Updates, state: AveragingState, params: optax.Params, **seen: Any
    ) -> tuple[optax.Updates, AveragingState]:
        inner = OptimizerState(*state[:-1])
        updates, new = optimizer.update(grads, inner, params, **seen)
        share = jnp.maximum(1 - decay, 1 / jnp.maximum(new.updates, 1))
        share = jnp.where(new.updates > inner.updates, share, 0.0)
        average = optax.incremental_update(optax.apply_updates(params, updates), state.average, share)
        return updates, AveragingState(**new._asdict(), average=average)

    return optax.GradientTransformationExtraArgs(init, update)


def averaged(optimizer_state: Any, trained: Any) -> Any | None:
    """The average in the dtypes of the trained parameters; None for a run that keeps none."""
    if not isinstance(optimizer_state, AveragingState):
        return None
    return jax.tree.map(lambda a, p: a.astype(p.dtype), optimizer_state.average, trained)
