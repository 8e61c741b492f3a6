"""Bits per byte of held-out text: the loss that can be compared across tokenizers.

    bits per byte = sum of -log2 p(token | document so far)  /  UTF-8 bytes of the documents

The sum runs over every token of every document, so the number says how many bits the model needs to store one byte of
the text, whatever pieces it is cut into.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from allam_jax.errors import UserError
from allam_jax.model.config import ComputeOptions, LlamaConfig
from allam_jax.model.llama import Params, bind
from allam_jax.parallel.distributed import global_batch_array, process_rows
from allam_jax.parallel.mesh import check_batch
from allam_jax.training.losses import token_nll

Result = dict[str, float]
_NEEDED = ("tokens", "targets", "segment_ids", "positions")


class Rows(Protocol):
    """Held-out documents as batches: equal-shaped, each scored token once, the same on every process."""

    @property
    def batches(self) -> Sequence[Mapping[str, np.ndarray]]:
        """Dicts of [B, T] arrays as in `data/batch.py`."""

    @property
    def num_bytes(self) -> int:
        """UTF-8 bytes of the documents."""


def make_evaluator(
    *, config: LlamaConfig, options: ComputeOptions, mesh: Mesh, num_chunks: int = 1
) -> Callable[[Params, Rows], Result]:
    """Returns `evaluate(params, rows)`, compiled once for each shape of batch.

    Its result: `bits_per_byte`, `nats` (summed negative log-likelihood), `bytes`, `tokens` (scored targets) and
    `nats_per_token`. Likelihoods leave the devices token by token in float32 and are summed on the host in float64, in
    the order of the rows: the sum does not depend on how the batch was cut over devices.

    Args:
        config: shapes.
        options: how to compute; dropout is off.
        mesh: rows are cut over its `data` and `fsdp` axes. With several processes, each calls with the same rows.
        num_chunks: logits of 1 / num_chunks of a batch exist at a time.

    `evaluate` raises UserError for rows without text, and for a batch that the mesh does not divide.
    """

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

    def evaluate(params: Params, rows: Rows) -> Result:
        nats, tokens = 0.0, 0
        waiting: tuple[jax.Array, np.ndarray] | None = None
        for batch in rows.batches:
            weights_BT = np.asarray(batch["loss_weights"])
            with jax.set_mesh(mesh):
                nll_BT = compiled(params, _on_mesh(batch, mesh=mesh))
            if waiting is not None:  # fetched one batch late, so that the devices never wait for the host
                nats += _weighted_sum(*waiting)
            waiting = nll_BT, weights_BT
            tokens += int(np.count_nonzero(weights_BT))
        if waiting is not None:
            nats += _weighted_sum(*waiting)
        if not tokens or not rows.num_bytes:
            raise UserError("the evaluation set has no text: it needs at least one document that is not empty")
        return {
            "bits_per_byte": nats / np.log(2).item() / rows.num_bytes,
            "nats": nats,
            "bytes": rows.num_bytes,
            "tokens": tokens,
            "nats_per_token": nats / tokens,
        }

    return evaluate


def evaluate_sets(
    evaluate: Callable[[Params, Rows], Result], params: Params, *, sets: Mapping[str, Rows]
) -> dict[str, Result]:
    """Evaluates every named set; UserError names the one that has no text."""
    results = {}
    for name, rows in sets.items():
        try:
            results[name] = evaluate(params, rows)
        except UserError as error:
            raise UserError(f"evaluation set {name!r}: {error}") from None
    return results


def metrics_row(results: Mapping[str, Result]) -> dict[str, float]:
    """Results by set as a row of metrics.jsonl: `eval/en/bits_per_byte`, ..."""
    return {f"eval/{name}/bits_per_byte": result["bits_per_byte"] for name, result in results.items()}


def _weighted_sum(nll_BT: jax.Array, weights_BT: np.ndarray) -> float:
    # Positions that do not count are left out, not multiplied by 0: their likelihood may be anything, also NaN.
    counted_BT = weights_BT > 0
    values = np.asarray(nll_BT, np.float64)[counted_BT]
    return float(np.sum(values * weights_BT[counted_BT].astype(np.float64)))


def _on_mesh(batch: Mapping[str, np.ndarray], *, mesh: Mesh) -> dict[str, jax.Array]:
    num_rows = len(batch["tokens"])
    check_batch(num_rows, accumulation=1, mesh=mesh)
    start, stop = process_rows(mesh, global_batch=num_rows)
    mine = {key: batch[key][start:stop] for key in _NEEDED}
    return global_batch_array(mine, mesh=mesh, global_batch=num_rows)
