"""AdamW as Llama was trained with: clipped by global norm, decoupled decay on matrices, guarded against spikes.

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
from allam_jax.training.guard import GuardState, guard_metrics, skip_spikes
from allam_jax.training.schedules import Schedule, rewarm_factor


class OptimizerState(NamedTuple):
    """Adam's moments (`guard.inner.mu`, `.nu`, trees like the parameters) inside the guard's statistics."""

    guard: GuardState
    learning_rate: jax.Array  # of the last update, float32; for the metrics

    @property
    def updates(self) -> jax.Array:
        """Updates made since these moments were created (int32): the origin of `rewarm_factor`."""
        return self.guard.inner.count


def make_optimizer(
    *,
    schedule: Schedule,
    b1: float = 0.9,
    b2: float = 0.95,
    eps: float = 1e-8,
    weight_decay: float = 0.1,
    clip_norm: float = 1.0,
    no_decay: tuple[str, ...] = ("scale",),
    first_moment_dtype: str = "float32",
    rewarm_mode: str = "linear",
    rewarm_steps: int = 0,
    guard_window: int = 128,
    guard_sigma: float = 6.0,
    guard_min_history: int = 64,
) -> optax.GradientTransformationExtraArgs:
    """AdamW; `update(grads, state, params, *, step, loss, grad_norm)` gives the updates to add to the parameters.

    Args:
        schedule: step -> learning rate, for the global step handed to `update` (skipped updates advance it too).
        b1, b2, eps: Adam's.
        weight_decay: decoupled; multiplied by the learning rate, as in torch and Llama.
        clip_norm: largest global gradient norm; 0 switches clipping off.
        no_decay: names of parameters (or of groups of them) that are not decayed; ("scale", "embedding") spares the
            embedding as well.
        first_moment_dtype: "float32" or "bfloat16" (saves 2 bytes a parameter); the second moment stays float32.
        rewarm_mode, rewarm_steps: see `rewarm_factor`; for runs that start from parameters without moments.
        guard_window, guard_sigma, guard_min_history: see `skip_spikes`.

    `loss` is the step's mean loss and `grad_norm` the global norm of `grads` (`grad_norms(grads)["global"]`), both
    scalars. Skipped updates are -0.0 and leave every bit of the parameters as it was.
    """
    if first_moment_dtype not in ("float32", "bfloat16"):
        raise UserError(f"optimizer.first_moment_dtype: {first_moment_dtype!r}; expected 'float32' or 'bfloat16'")
    for key, beta in (("b1", b1), ("b2", b2)):
        if not 0 <= beta < 1:
            raise UserError(f"optimizer.{key}: {beta} is outside [0, 1)")
    for key, value in (("eps", eps), ("weight_decay", weight_decay), ("clip_norm", clip_norm)):
        if not value >= 0:
            raise UserError(f"optimizer.{key}: {value} is negative; expected 0 or more")

    adam = optax.scale_by_adam(b1, b2, eps, mu_dtype=first_moment_dtype)
    rewarm = rewarm_factor(mode=rewarm_mode, steps=rewarm_steps)

    def init_adam(params: optax.Params) -> optax.OptState:
        # optax takes the second moment's type from the parameters: bfloat16 parameters still get float32.
        return adam.init(jax.tree.map(lambda p: p.astype(jnp.float32), params))

    def update_adam(
        grads: optax.Updates,
        state: optax.OptState,
        params: optax.Params,
        *,
        grad_norm: jax.Array,
        learning_rate: jax.Array,
    ) -> tuple[optax.Updates, optax.OptState]:
        clip = jnp.minimum(1.0, clip_norm / (grad_norm + 1e-6)) if clip_norm else 1.0
        grads = jax.tree.map(lambda g: g.astype(jnp.float32) * clip, grads)
        directions, state = adam.update(grads, state)

        def descend(direction: jax.Array, p: jax.Array, decays: bool) -> jax.Array:
            decay = weight_decay * p.astype(jnp.float32) if decays else 0.0
            return -learning_rate * (direction + decay)

        return jax.tree.map(descend, directions, params, decay_mask(params, no_decay=no_decay)), state

    guarded = skip_spikes(
        optax.GradientTransformationExtraArgs(init_adam, update_adam),  # type: ignore[arg-type]
        window=guard_window,
        sigma=guard_sigma,
        min_history=guard_min_history,
    )

    def init(params: optax.Params) -> OptimizerState:
        return OptimizerState(guard=guarded.init(params), learning_rate=jnp.zeros((), jnp.float32))

    def update(
        grads: optax.Updates,
        state: OptimizerState,
        params: optax.Params,
        *,
        step: jax.typing.ArrayLike,
        loss: jax.Array,
        grad_norm: jax.Array,
    ) -> tuple[optax.Updates, OptimizerState]:
        learning_rate = schedule(step) * rewarm(state.updates)
        updates, guard = guarded.update(
            grads, state.guard, params, loss=loss, grad_norm=grad_norm, learning_rate=learning_rate
        )
        return updates, OptimizerState(guard=guard, learning_rate=learning_rate)

    return optax.GradientTransformationExtraArgs(init, update)  # type: ignore[arg-type]


def optimizer_metrics(state: OptimizerState) -> dict[str, jax.Array]:
    """Scalars to log after an update: `learning_rate`, `skipped`, `skipped_in_a_row`, `skipped_share`."""
    return {"learning_rate": state.learning_rate, **guard_metrics(state.guard)}


def decay_mask(params: optax.Params, *, no_decay: tuple[str, ...] = ("scale",)) -> Any:
    """Tree of bools like `params`: False where a name on the parameter's path is in `no_decay`.

    Names decide, not ranks: layers are stacked, so a norm's scale has two axes like a matrix.
    UserError if a name in `no_decay` occurs nowhere.
    """
    found: set[str] = set()

    def decays(path: tuple[Any, ...], _: Any) -> bool:
        matches = set(_names(path)) & set(no_decay)
        found.update(matches)
        return not matches

    mask = jax.tree_util.tree_map_with_path(decays, params)
    for name in no_decay:
        if name not in found:
            raise UserError(f"optimizer.no_decay: no parameter is called {name!r}; expected names such as 'scale'")
    return mask


def grad_norms(grads: Any) -> dict[str, jax.Array]:
    """Euclidean norms of gradients, all from one pass over them; float32.

    Returns: "global" and one entry for each group present ("embedding", "head", "norms", "attention", "mlp"): scalars;
    "layers" (all of a layer), "layers_attention", "layers_mlp": one value a layer, shape [L].
    """
    groups: dict[str, list[jax.Array]] = {}
    layers: dict[str, list[jax.Array]] = {}
    for path, gradient in jax.tree_util.tree_leaves_with_path(grads):
        names = _names(path)
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


def _names(path: tuple[Any, ...]) -> list[str]:
    return [str(getattr(entry, "key", getattr(entry, "name", entry))) for entry in path]
