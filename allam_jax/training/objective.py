"""What a training step minimises: an objective turns parameters and a batch into a summed loss.

The step (`training/step.py`) divides by the normaliser of the whole step, so that the loss does not depend on how its
rows fall into micro-batches or onto devices. The normaliser follows from the batch alone: it is known before the first
gradient is taken, and each micro-batch's loss is divided before it is differentiated.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np

from allam_jax.data.batch import DTYPES
from allam_jax.model.llama import Params, bind
from allam_jax.model.llama_config import ComputeOptions, LlamaConfig
from allam_jax.training.losses import chunked_cross_entropy

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]
# Adds to a batch on the devices what an objective needs and the loader does not have; may use the model's parameters.
Prepare = Callable[[Params, Batch], Batch]


class Objective(Protocol):
    """A loss over a batch. To train on another loss, write one of these; step, loop and planner stay as they are."""

    @property
    def batch_dtypes(self) -> Mapping[str, np.dtype]:
        """The arrays [B, T] that a batch must have: those of `data.batch.DTYPES`, and any that this objective adds."""
        ...

    def normaliser(self, batch: Batch) -> jax.Array:
        """What the sums of a whole step are divided by: a positive scalar, such as its number of predicted tokens."""
        ...

    def summed_loss(self, params: Params, batch: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
        """The loss to differentiate, *summed* over the rows of a micro-batch, and named sums for the metrics.

        Args:
            params: of the model.
            batch: arrays [B, T].
            key: a random key of this micro-batch, for dropout.

        Returns:
            A scalar, and scalars by name. One of them must be `loss`: the guard against spikes watches its mean.
        """
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class NextToken:
    """Cross-entropy of the next token over the weighted targets of a batch, in nats; named sums `loss` and `z_loss`."""

    model: LlamaConfig
    options: ComputeOptions
    z_loss: float = 0.0  # coefficient of (log Z)^2; see `losses.py`
    num_chunks: int = 1  # pieces of the sequence; logits exist for one at a time

    @property
    def batch_dtypes(self) -> Mapping[str, np.dtype]:
        """See Objective."""
        return DTYPES

    def normaliser(self, batch: Batch) -> jax.Array:
        """The summed weights of all targets; 1 where nothing is to be predicted."""
        return jnp.maximum(jnp.sum(batch["loss_weights"]), 1.0)

    def summed_loss(self, params: Params, batch: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
        """See Objective."""
        hidden_BTD, head_DV = hidden_and_head(params, batch, config=self.model, options=self.options, key=key)
        sums = chunked_cross_entropy(
            hidden_BTD,
            head_DV,
            targets_BT=batch["targets"],
            weights_BT=batch["loss_weights"],
            vocab_size=self.model.vocab_size,
            z_loss=self.z_loss,
            num_chunks=self.num_chunks,
        )
        return sums.total, {"loss": sums.loss, "z_loss": sums.z_loss}


def hidden_and_head(
    params: Params, batch: Batch, *, config: LlamaConfig, options: ComputeOptions, key: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """The forward pass that losses begin with: hidden states [B, T, D] and the head [D, V].

    The hidden states have the dtype in which they are to meet the head.

    Args:
        params: of the model.
        batch: packed rows [B, T].
        config: shapes of the model.
        options: how it is computed.
        key: for dropout; without one there is none.
    """
    model = bind(params, config=config, options=options)
    hidden_BTD = model.hidden(
        batch["tokens"],
        segment_ids_BT=batch["segment_ids"],
        positions_BT=batch["positions"],
        dropout_key=key if options.has_dropout else None,
    )
    return hidden_BTD.astype(options.products or hidden_BTD.dtype), model.head_DV


def unchanged(params: Params, batch: Batch) -> Batch:
    """The `Prepare` of an objective that needs only what the loader gives."""
    return batch
