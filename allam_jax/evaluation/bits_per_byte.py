"""Bits per byte of held-out text: the loss that can be compared across tokenizers.

    bits per byte = sum of -log2 p(token | document so far)  /  UTF-8 bytes of the documents

The sum runs over every token of every document, so the number says how many bits the model needs to store one byte of
the text, whatever pieces it is cut into.
"""

import math
from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from allam_jax.data.batch import Batch
from allam_jax.data.evaluation_rows import EvaluationRows
from allam_jax.model.llama import Params, bind
from allam_jax.model.llama_config import ComputeOptions, LlamaConfig
from allam_jax.parallel.distributed import global_batch_array, process_rows
from allam_jax.parallel.mesh import check_batch
from allam_jax.training.losses import token_nll

Result = dict[str, float]
_NEEDED = ("tokens", "targets", "segment_ids", "positions")


def make_evaluator(
    *, config: LlamaConfig, options: ComputeOptions, mesh: Mesh, batch_size: int, num_chunks: int = 1
) -> Callable[[Params, EvaluationRows], Result]:
    """Returns `evaluate(params, rows)`, compiled once for each length of rows.

    Its result: `bits_per_byte`, `nats` (summed negative log-likelihood), `bytes`, `tokens` (scored targets) and
    `nats_per_token`. Likelihoods leave the devices token by token in float32 and are summed on the host in float64, in
    the order of the rows: the size of the set costs no precision, and neither mesh nor processes change the sum.

    Args:
        config: shapes.
        options: how to compute; dropout is off.
        mesh: batches are cut over its `data` and `fsdp` axes. With several processes, each calls with all rows.
        batch_size: rows that are scored at a time.
        num_chunks: logits of 1 / num_chunks of a batch exist at a time.

    Raises:
        UserError: the mesh does not divide the batch size.
    """
    check_batch(batch_size, accumulation=1, mesh=mesh)
    start, stop = process_rows(mesh, global_batch=batch_size)

    def nll(params: Params, batch: dict[str, jax.Array]) -> jax.Array:
        model = bind(params, config=config, options=options)
        hidden_BTD = model.hidden(batch["tokens"], segment_ids_BT=batch["segment_ids"], positions_BT=batch["positions"])
        return token_nll(
            hidden_BTD,
            model.head_DV,
            targets_BT=batch["targets"],
            vocab_size=config.vocab_size,
            num_chunks=num_chunks,
        )

    replicated = NamedSharding(mesh, PartitionSpec())
    compiled = jax.jit(nll, out_shardings=replicated)

    def on_mesh(batch: Batch) -> dict[str, jax.Array]:
        mine = {key: batch[key][start:stop] for key in _NEEDED}
        return global_batch_array(mine, mesh=mesh, global_batch=batch_size)

    def evaluate(params: Params, rows: EvaluationRows) -> Result:
        nats = 0.0
        waiting: tuple[jax.Array, np.ndarray] | None = None
        for batch in rows.batches(batch_size):
            with jax.set_mesh(mesh):
                nll_BT = compiled(params, on_mesh(batch))
            if waiting is not None:  # fetched one batch late, so that the devices never wait for the host
                nats += _weighted_sum(*waiting)
            waiting = nll_BT, batch["loss_weights"]
        if waiting is not None:
            nats += _weighted_sum(*waiting)
        return {
            "bits_per_byte": nats / math.log(2) / rows.bytes,
            "nats": nats,
            "bytes": rows.bytes,
            "tokens": rows.tokens,
            "nats_per_token": nats / rows.tokens,
        }

    return evaluate


def _weighted_sum(nll_BT: jax.Array, weights_BT: np.ndarray) -> float:
    # Positions that do not count are left out, not multiplied by 0: their likelihood may be anything, also NaN.
    counted_BT = weights_BT > 0
    values = np.asarray(nll_BT, np.float64)[counted_BT]
    return float(np.sum(values * weights_BT[counted_BT].astype(np.float64)))
