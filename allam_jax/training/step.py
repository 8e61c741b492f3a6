"""One optimizer step, as a pure function of state and batch."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from allam_jax.model.llama import Params, bind
from allam_jax.model.llama_config import ComputeOptions, LlamaConfig
from allam_jax.parallel.mesh import batch_sharding, split_microbatches
from allam_jax.training.losses import chunked_cross_entropy
from allam_jax.training.optimizer import grad_norms, optimizer_metrics
from allam_jax.training.state import TrainState, shardings_of

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]

# What the compiler is asked for on GPUs.
_ON_GPU = {
    # Without it XLA runs most gathers and reductions of an A100 cluster alone, with nothing beside them (task plan
    # shows which); on H100 it is the default.
    "xla_gpu_enable_latency_hiding_scheduler": True,
    # Same config and seed, same bits: the embedding's gradient would otherwise be summed by atomic additions, in any
    # order. It costs a sort of the token ids.
    "xla_gpu_exclude_nondeterministic_ops": True,
}


def batch_loss(
    params: Params,
    batch: Batch,
    *,
    config: LlamaConfig,
    options: ComputeOptions,
    z_loss: float = 0.0,
    num_chunks: int = 1,
    dropout_key: jax.Array | None = None,
) -> tuple[jax.Array, Metrics]:
    """The loss of a batch, *summed* over its weighted tokens, and its parts; arrays are [B, T] (see data/batch.py)."""
    model = bind(params, config=config, options=options)
    hidden_BTD = model.hidden(
        batch["tokens"],
        segment_ids_BT=batch["segment_ids"],
        positions_BT=batch["positions"],
        dropout_key=dropout_key,
    )
    sums = chunked_cross_entropy(
        hidden_BTD,
        model.head_DV,
        targets_BT=batch["targets"],
        weights_BT=batch["loss_weights"],
        vocab_size=config.vocab_size,
        z_loss=z_loss,
        num_chunks=num_chunks,
    )
    return sums.total, {"loss": sums.loss, "z_loss": sums.z_loss}


class TrainStep:
    """A jitted step and its mesh: called with arrays it runs, lowered with their shapes it can be looked at."""

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
    *,
    config: LlamaConfig,
    options: ComputeOptions,
    optimizer: optax.GradientTransformationExtraArgs,
    abstract: TrainState,
    mesh: Mesh,
    num_sources: int,
    accumulation: int = 1,
    z_loss: float = 0.0,
    num_chunks: int = 1,
) -> TrainStep:
    """Compiles `(state, batch) -> (state, metrics)`; the state's buffers are donated.

    The loss is the mean over all weighted tokens of the step, however they fall into micro-batches: every
    micro-batch's gradient is that of its summed loss, divided by the weight of the whole step.

    Metrics (replicated): loss and z_loss (nats per token), tokens (weighted targets, int32), source_tokens
    ([num_sources], int32), grad_norm and its groups, and the optimizer's (learning_rate, skipped...).
    """

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        weight = jnp.maximum(jnp.sum(batch["loss_weights"]), 1.0)
        step_key = jax.random.fold_in(jax.random.wrap_key_data(state.rng), state.step)

        def micro_loss(params: Params, micro: Batch, index: jax.Array) -> tuple[jax.Array, Metrics]:
            key = jax.random.fold_in(step_key, index) if options.has_dropout else None
            loss, parts = batch_loss(
                params, micro, config=config, options=options, z_loss=z_loss, num_chunks=num_chunks, dropout_key=key
            )
            return loss / weight, jax.tree.map(lambda part: part / weight, parts)

        gradient = jax.grad(micro_loss, has_aux=True)
        if accumulation == 1:
            grads, parts = gradient(state.params, batch, jnp.zeros((), jnp.int32))
        else:
            grads, parts = _accumulate(
                lambda micro, index: gradient(state.params, micro, index), batch, accumulation=accumulation
            )

        norms = grad_norms(grads)
        grad_norm = norms.pop("global")
        updates, moments = optimizer.update(
            grads, state.optimizer, state.params, step=state.step, loss=parts["loss"], grad_norm=grad_norm
        )
        params = optax.apply_updates(state.params, updates)
        metrics = {
            **parts,
            "grad_norm": grad_norm,
            **{f"grad_norm/{name}": value for name, value in norms.items()},
            **optimizer_metrics(moments),
            **_token_counts(batch, num_sources=num_sources),
        }
        return TrainState(step=state.step + 1, params=params, optimizer=moments, rng=state.rng), metrics

    replicated = NamedSharding(mesh, PartitionSpec())
    state_shardings = shardings_of(abstract)
    compiled = jax.jit(
        train_step,
        in_shardings=(state_shardings, batch_sharding(mesh)),
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
