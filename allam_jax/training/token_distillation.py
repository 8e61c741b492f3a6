"""Token distillation: rows of new tokens after which the network is in the state that the old pieces lead to.

A new token stands for several old ones. The network with the old vocabulary reads a passage; the network with the new
one reads the same bytes in fewer tokens. At every place where both have read the same bytes, from the first new token
on, the hidden states should be equal. Only the new rows of the embedding learn; everything else is frozen (Dobler et
al. 2025, 2505.20133). A mean of the old rows ignores how the layers combine the pieces; this does not.

In a network with tied tables a row also decides when its token is predicted. There the cross-entropy of the next token
is added to the loss; the squared error alone would leave that to chance.

M new tokens, B batch, T sequence, P pairs of places, D model width.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import logging
from jaxtyping import Array

from allam_jax.data.aligned_rows import AlignedRows
from allam_jax.errors import UserError
from allam_jax.model.llama import Llama, Params, bind
from allam_jax.model.llama_config import ComputeOptions, LlamaConfig
from allam_jax.model.settings import DistillationSettings
from allam_jax.tokenizer.provenance import ExpansionPlan
from allam_jax.training.losses import chunked_cross_entropy

_CHUNKS = 4  # of the sequence; logits exist for one at a time
_SHOWN = 20  # steps between two lines of the log


def distill_tokens(
    *,
    base: tuple[Params, LlamaConfig],
    expanded: tuple[Params, LlamaConfig],
    plan: ExpansionPlan,
    rows: AlignedRows,
    settings: DistillationSettings,
    options: ComputeOptions,
    seed: int,
) -> Params:
    """The expanded parameters with other rows of the input table for the new tokens that the passages have.

    Args:
        base: parameters and configuration of the old vocabulary.
        expanded: those of the new one; its new rows are where the learning begins.
        plan: which tokens are new.
        rows: the passages.
        settings: steps, batch and learning rate.
        options: how to compute; dropout is off.
        seed: of the order of the passages.

    Raises:
        UserError: there are fewer passages than rows in a batch.
    """
    if len(rows) < settings.batch_size:
        raise UserError(
            f"expand.distillation: {len(rows)} passages with new tokens, fewer than a batch of {settings.batch_size}: "
            "give more text in expand.distillation.sources"
        )
    params = expanded[0]
    table_VD = params["embedding"]["table"]
    new_M = np.fromiter(plan.new, np.int32)
    schedule = optax.cosine_decay_schedule(settings.learning_rate, settings.steps)
    optimizer = optax.adam(schedule)

    def with_rows(rows_MD: Array, params: Params) -> Params:
        table = params["embedding"]["table"]
        return params | {"embedding": {"table": table.at[new_M].set(rows_MD.astype(table.dtype))}}

    def hidden(model: Llama, tokens_BT: Array) -> Array:
        positions_BT = jnp.broadcast_to(jnp.arange(tokens_BT.shape[1]), tokens_BT.shape)
        return model.hidden(tokens_BT, segment_ids_BT=jnp.ones_like(tokens_BT), positions_BT=positions_BT)

    def at(places_BP: Array, hidden_BTD: Array) -> Array:
        return jnp.take_along_axis(hidden_BTD.astype(jnp.float32), places_BP[:, :, None], axis=1)

    def loss(rows_MD: Array, params: Params, target_BPD: Array, batch: dict[str, Array]) -> Array:
        model = bind(with_rows(rows_MD, params), config=expanded[1], options=options)
        tokens_BT = batch["new_RT"]
        hidden_BTD = hidden(model, tokens_BT)
        counts_BP = jnp.arange(target_BPD.shape[1]) < batch["pairs_R"][:, None]
        error_BP = jnp.mean(jnp.square(at(batch["new_places_RT"], hidden_BTD) - target_BPD), axis=-1)
        total = jnp.sum(error_BP, where=counts_BP) / jnp.sum(counts_BP)
        if not expanded[1].tie_embeddings:
            return total
        weights_BT = (jnp.arange(1, tokens_BT.shape[1] + 1) < batch["lengths_R"][:, None]).astype(jnp.float32)
        sums = chunked_cross_entropy(
            hidden_BTD,
            model.head_DV,
            targets_BT=jnp.roll(tokens_BT, -1, axis=1),
            weights_BT=weights_BT,
            vocab_size=expanded[1].vocab_size,
            num_chunks=_CHUNKS,
        )
        return total + sums.total / jnp.sum(weights_BT)

    @jax.jit
    def step(rows_MD: Array, state: optax.OptState, batch: dict[str, Array], base_params: Params, params: Params):
        model = bind(base_params, config=base[1], options=options)
        target_BPD = at(batch["old_places_RT"], hidden(model, batch["old_RT"]))
        value, gradient_MD = jax.value_and_grad(loss)(rows_MD, params, target_BPD, batch)
        updates, state = optimizer.update(gradient_MD, state)
        return optax.apply_updates(rows_MD, updates), state, value

    rows_MD = table_VD[new_M].astype(jnp.float32)
    state = optimizer.init(rows_MD)
    order = _order(len(rows), settings.steps * settings.batch_size, seed=seed).reshape(settings.steps, -1)
    for number, index in enumerate(order, start=1):
        rows_MD, state, value = step(rows_MD, state, rows.rows(index), base[0], params)
        if number in (1, settings.steps) or number % _SHOWN == 0:
            logging.info("token distillation: step %d of %d, loss %.4g", number, settings.steps, float(value))
    tables = {"embedding": params["embedding"]}
    return params | jax.jit(with_rows, out_shardings=jax.tree.map(lambda a: a.sharding, tables))(rows_MD, tables)


def _order(rows: int, needed: int, *, seed: int) -> np.ndarray:
    """Indices of passages: each occurs once before any occurs again."""
    generator = np.random.default_rng(seed)
    rounds = [generator.permutation(rows) for _ in range(-(-needed // rows))]
    return np.concatenate(rounds)[:needed]
