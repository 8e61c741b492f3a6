"""One optimizer step, as a pure function of state and batch."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from allam_jax.model.llama import Params
from allam_jax.parallel.mesh import batch_sharding, split_microbatches
from allam_jax.training.objective import Batch, Metrics, Objective
from allam_jax.training.optimizer import grad_norms, optimizer_metrics
from allam_jax.training.state import TrainState, shardings_of
from allam_jax.training.trainable import Trainable

# What the compiler is asked for on GPUs.
_ON_GPU = {
    # Without it XLA runs most gathers and reductions of an A100 cluster alone, with nothing beside them (task plan
    # shows which); on H100 it is the default.
    "xla_gpu_enable_latency_hiding_scheduler": True,
    # Same config and seed, same bits: the embedding's gradient would otherwise be summed by atomic additions, in any
    # order. It costs a sort of the token ids.
    "xla_gpu_exclude_nondeterministic_ops": True,
}


class TrainStep:
    """A jitted step and its mesh. Call it with arrays to run it; lower it with their shapes to look at the program."""

    def __init__(self, jitted: Any, *, mesh: Mesh):
        self._jitted, self._mesh = jitted, mesh

    def __call__(self, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        """The state after the step and the step's metrics; the state's buffers are donated."""
        with jax.set_mesh(self._mesh):
            return self._jitted(state, batch)

    def lower(self, state: TrainState, batch: dict[str, jax.ShapeDtypeStruct]) -> jax.stages.Lowered:
        """The program for a state and batch of `jax.ShapeDtypeStruct`s with shardings; nothing is allocated."""
        with jax.set_mesh(self._mesh):
            return self._jitted.lower(state, batch)


def make_train_step(
    objective: Objective,
    *,
    optimizer: optax.GradientTransformationExtraArgs,
    abstract: TrainState,
    num_sources: int,
    accumulation: int = 1,
    trainable: Trainable = Trainable(),  # noqa: B008 (frozen)
) -> TrainStep:
    """Compiles `(state, batch) -> (state, metrics)`; the state's buffers are donated.

    The gradient is that of the summed loss of the whole step over its normaliser, however the rows fall into
    micro-batches: each micro-batch's sum is divided by the normaliser of the whole step.

    Args:
        objective: what is minimised; its `batch_dtypes` says which arrays the step takes.
        optimizer: from `make_optimizer`.
        abstract: shapes and shardings of the state; the step runs on their mesh.
        num_sources: how many sources `source_ids` counts.
        accumulation: micro-batches, one after the other.
        trainable: which parameters get gradients, moments and updates; the others keep every bit.

    Metrics (replicated): the objective's named sums over the normaliser, tokens (weighted targets, int32),
    source_tokens ([num_sources], int32), grad_norm and its groups, and the optimizer's (learning_rate, skipped...). For
    parameters of 16 bits also lost_updates, the share of weights whose update was too small to change them.
    """
    mesh = abstract.step.sharding.mesh

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        normaliser = objective.normaliser(batch)
        step_key = jax.random.fold_in(jax.random.wrap_key_data(state.rng), state.step)

        trained = trainable.select(state.params)

        def mean_loss(trained: Params, micro: Batch, index: jax.Array) -> tuple[jax.Array, Metrics]:
            params = trainable.insert(state.params, trained)
            loss, sums = objective.summed_loss(params, micro, jax.random.fold_in(step_key, index))
            return loss / normaliser, jax.tree.map(lambda each: each / normaliser, sums)

        gradient = jax.grad(mean_loss, has_aux=True)
        if accumulation == 1:
            grads, means = gradient(trained, batch, jnp.zeros((), jnp.int32))
        else:
            grads, means = _accumulate(
                lambda micro, index: gradient(trained, micro, index), batch, accumulation=accumulation
            )

        norms = grad_norms(grads)
        grad_norm = norms.pop("global")
        updates, moments = optimizer.update(
            grads, state.optimizer, trained, step=state.step, loss=means["loss"], grad_norm=grad_norm
        )
        updated = optax.apply_updates(trained, updates)
        metrics = {
            **means,
            "grad_norm": grad_norm,
            **{f"grad_norm/{name}": value for name, value in norms.items()},
            **optimizer_metrics(moments),
            **_token_counts(batch, num_sources=num_sources),
            **lost_updates(trained, updates, updated),
        }
        params = trainable.insert(state.params, updated)
        return TrainState(step=state.step + 1, params=params, optimizer=moments, rng=state.rng), metrics

    replicated = NamedSharding(mesh, PartitionSpec())
    state_shardings = shardings_of(abstract)
    compiled = jax.jit(
        train_step,
        in_shardings=(state_shardings, dict.fromkeys(objective.batch_dtypes, batch_sharding(mesh))),
        out_shardings=(state_shardings, replicated),
        donate_argnums=0,
        compiler_options=_ON_GPU if mesh.devices.flat[0].platform == "gpu" else None,
    )
    return TrainStep(compiled, mesh=mesh)


def _accumulate(
    gradient: Callable[[Batch, jax.Array], tuple[Params, Metrics]], batch: Batch, *, accumulation: int
) -> tuple[Params, Metrics]:
    """Sums gradients and metrics over micro-batches, in float32, one after the other."""

    def add(total: Any, inputs: tuple[Batch, jax.Array]) -> tuple[Any, None]:
        return jax.tree.map(lambda t, g: t + g.astype(jnp.float32), total, gradient(*inputs)), None

    micro = split_microbatches(batch, accumulation=accumulation)
    indices = jnp.arange(accumulation)
    first = jax.tree.map(lambda x: x[0], micro)
    zeros = jax.tree.map(lambda shape: jnp.zeros(shape.shape, jnp.float32), jax.eval_shape(gradient, first, indices[0]))
    total, _ = jax.lax.scan(add, zeros, (micro, indices))
    return total


def _token_counts(batch: Batch, *, num_sources: int) -> Metrics:
    predicted_BT = batch["loss_weights"] > 0
    sources = jnp.arange(num_sources)[:, None, None]
    counts = jnp.sum((batch["source_ids"] == sources) & predicted_BT, axis=(1, 2), dtype=jnp.int32)
    return {"tokens": jnp.sum(predicted_BT, dtype=jnp.int32), "source_tokens": counts}


def lost_updates(before: Params, updates: Params, after: Params) -> Metrics:
    """`lost_updates`: the share of weights that an update other than 0 left as they were; {} for wider than 16 bits."""
    leaves = list(zip(*map(jax.tree.leaves, (before, updates, after)), strict=True))
    if all(old.dtype.itemsize > 2 for old, _, _ in leaves):
        return {}
    lost = sum(jnp.sum((old == new) & (update != 0), dtype=jnp.float32) for old, update, new in leaves)
    return {"lost_updates": lost / sum(old.size for old, _, _ in leaves)}
