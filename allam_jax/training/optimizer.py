"""AdamW as in Llama's training: clipped by global norm, decoupled decay on matrices, guarded against spikes.

One update, with gradients g, n updates made before, at step s (Loshchilov & Hutter 2019, 1711.05101; equal to
torch's `clip_grad_norm_` followed by `AdamW`):

    g  <- g * min(1, clip_norm / (|g| + 1e-6))
    m  <- b1 m + (1 - b1) g,  v <- b2 v + (1 - b2) g^2
    lr  = schedule(s) * rewarm(n)
    p  <- p - lr * (m / (1 - b1^(n+1)) / (sqrt(v / (1 - b2^(n+1))) + eps) + weight_decay * p)    decay: see `decay_mask`
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from allam_jax.errors import UserError
from allam_jax.parallel.sharding import path_name
from allam_jax.training.guard import GuardState, SpikeGuard, guard_metrics
from allam_jax.training.schedules import Schedule, rewarm_factor
from allam_jax.training.settings import GuardSettings, OptimizerSettings


class _Updated(NamedTuple):
    update: jax.Array
    mu: jax.Array
    nu: jax.Array


class OptimizerState(NamedTuple):
    """Adam's moments, and the guard that watches over them."""

    mu: Any  # first moment, like the parameters
    nu: Any  # second moment, like the parameters, float32
    updates: jax.Array  # made with these moments, int32; origin of the bias correction and of `rewarm_factor`
    guard: GuardState
    learning_rate: jax.Array  # of the last update, float32; for the metrics


def make_optimizer(
    settings: OptimizerSettings, *, schedule: Schedule, guard: GuardSettings
) -> optax.GradientTransformationExtraArgs:
    """AdamW; `update(grads, state, params, *, step, loss, grad_norm)` gives the updates to add to the parameters.

    Args:
        settings: Adam's numbers, clipping, decay, and the ramp of a run that starts without moments.
        schedule: step -> learning rate, for the global step handed to `update` (skipped updates advance it too).
        guard: which updates are skipped.

    `loss` is the step's mean loss and `grad_norm` the global norm of `grads` (`grad_norms(grads)["global"]`), both
    scalars. Skipped updates are -0.0 and leave every bit of the parameters as it was.
    """
    b1, b2, eps, weight_decay = settings.b1, settings.b2, settings.eps, settings.weight_decay
    clip_norm, no_decay, first_moment_dtype = settings.clip_norm, settings.no_decay, settings.first_moment_dtype
    spikes = SpikeGuard(guard)
    rewarm = rewarm_factor(mode=settings.rewarm_mode, steps=settings.rewarm_steps)

    def init(params: optax.Params) -> OptimizerState:
        return OptimizerState(
            mu=jax.tree.map(lambda p: jnp.zeros_like(p, first_moment_dtype), params),
            nu=jax.tree.map(lambda p: jnp.zeros_like(p, jnp.float32), params),
            updates=jnp.zeros((), jnp.int32),
            guard=spikes.init(),
            learning_rate=jnp.zeros((), jnp.float32),
        )

    def update(
        grads: optax.Updates,
        state: OptimizerState,
        params: optax.Params,
        *,
        step: jax.typing.ArrayLike,
        loss: jax.Array,
        grad_norm: jax.Array,
    ) -> tuple[optax.Updates, OptimizerState]:
        accept, guard_state = spikes.judge(state.guard, loss=loss, grad_norm=grad_norm)
        learning_rate = schedule(step) * rewarm(state.updates)
        clip = jnp.minimum(1.0, clip_norm / (grad_norm + 1e-6)) if clip_norm else 1.0

        # A skipped update uses the coefficients 1 and 0, which keep the moments, and gradients of -0.0, which keep
        # not-a-numbers out (x + -0.0 has the bits of x for every x). To select between the new and the old moments
        # would read the old ones twice. XLA would copy both before the update, at 5 times its cost on a CPU.
        keep1, add1 = jnp.where(accept, b1, 1.0), jnp.where(accept, 1 - b1, 0.0)
        keep2, add2 = jnp.where(accept, b2, 1.0), jnp.where(accept, 1 - b2, 0.0)
        n = state.updates + 1
        unbias1, unbias2 = 1 - jnp.float32(b1) ** n, 1 - jnp.float32(b2) ** n

        def one(g: jax.Array, mu: jax.Array, nu: jax.Array, p: jax.Array, decays: bool) -> _Updated:
            g = jnp.where(accept, g.astype(jnp.float32) * clip, -0.0)
            new_mu = keep1 * mu.astype(jnp.float32) + add1 * g
            new_nu = keep2 * nu + add2 * jnp.square(g)
            direction = (new_mu / unbias1) / (jnp.sqrt(new_nu / unbias2) + eps)
            if decays:
                direction += weight_decay * p.astype(jnp.float32)
            return _Updated(jnp.where(accept, -learning_rate * direction, -0.0), new_mu.astype(mu.dtype), new_nu)

        updated = jax.tree.map(one, grads, state.mu, state.nu, params, decay_mask(params, no_decay=no_decay))
        updates, mu, nu = (
            jax.tree.map(lambda u, i=i: u[i], updated, is_leaf=lambda u: isinstance(u, _Updated)) for i in range(3)
        )
        return updates, OptimizerState(
            mu=mu,
            nu=nu,
            updates=state.updates + accept.astype(jnp.int32),
            guard=guard_state,
            learning_rate=learning_rate,
        )

    return optax.GradientTransformationExtraArgs(init, update)  # type: ignore[arg-type]


def optimizer_metrics(state: OptimizerState) -> dict[str, jax.Array]:
    """Scalars to log after an update: `learning_rate`, `skipped`, `skipped_in_a_row`, `skipped_share`."""
    return {"learning_rate": state.learning_rate, **guard_metrics(state.guard)}


def decay_mask(params: optax.Params, *, no_decay: tuple[str, ...] = ("scale",)) -> Any:
    """Tree of bools like `params`: False for biases, and where a name on the parameter's path is in `no_decay`.

    Names decide, not ranks: layers are stacked, so a norm's scale has two axes like a matrix.
    """

    def decays(path: tuple[Any, ...], _: Any) -> bool:
        return set(path_name(path).split("/")).isdisjoint((*no_decay, "bias"))

    return jax.tree_util.tree_map_with_path(decays, params)


def check_no_decay(params: optax.Params, *, no_decay: tuple[str, ...]) -> None:
    """UserError if a name in `no_decay` is on no path of a network's parameters."""
    found = {name for path, _ in jax.tree_util.tree_leaves_with_path(params) for name in path_name(path).split("/")}
    for name in no_decay:
        if name not in found:
            raise UserError(f"optimizer.no_decay: no parameter is called {name!r}; expected names such as 'scale'")


def grad_norms(grads: Any) -> dict[str, jax.Array]:
    """Euclidean norms of gradients, all from one pass over them; float32.

    Returns: "global" and one entry for each group present ("embedding", "head", "norms", "attention", "mlp"): scalars;
    "layers" (all of a layer), "layers_attention", "layers_mlp": one value a layer, shape [L].
    """
    groups: dict[str, list[jax.Array]] = {}
    layers: dict[str, list[jax.Array]] = {}
    for path, gradient in jax.tree_util.tree_leaves_with_path(grads):
        names = path_name(path).split("/")
        stacked = names[0] == "layers"
        squares = jnp.square(gradient.astype(jnp.float32))
        sums = jnp.sum(squares, axis=tuple(range(1, gradient.ndim)) if stacked else None)
        group = "norms" if names[-1] == "scale" else names[1 if stacked else 0]
        groups.setdefault(group, []).append(jnp.sum(sums))
        if stacked:
            layers.setdefault("layers", []).append(sums)
            if group != "norms":
                layers.setdefault(f"layers_{group}", []).append(sums)
    squared = {name: sum(sums) for name, sums in {**groups, **layers}.items()}
    squared["global"] = sum(squared[name] for name in groups)
    return {name: jnp.sqrt(jnp.asarray(value)) for name, value in squared.items()}
