"""Sums over the scored tokens of held-out text, the same on every mesh and for any number of processes."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from allam_jax import watchdog
from allam_jax.data.batch import Batch
from allam_jax.data.evaluation_rows import EvaluationRows
from allam_jax.parallel.distributed import global_batch_array, process_rows
from allam_jax.parallel.mesh import check_batch

_INPUTS = ("tokens", "targets", "segment_ids", "positions")


def token_values(
    function: Callable[..., tuple[jax.Array, ...]], *, mesh: Mesh, batch_size: int
) -> Callable[..., Iterator[tuple[tuple[jax.Array, ...], Batch]]]:
    """Returns `values(*params, rows=rows)`, compiled once for each length of rows.

    It yields the function's values of each batch, on all processes, with the batch of all of them.

    Args:
        function: `function(*params, batch)` gives arrays of [B, T], one value for each token.
        mesh: it cuts the rows of a batch. With several processes, each calls `values` with all rows.
        batch_size: rows at a time.

    Raises:
        UserError: the mesh does not divide the batch size.
    """
    check_batch(batch_size, accumulation=1, mesh=mesh, key="eval.batch_size")
    start, stop = process_rows(mesh, global_batch=batch_size)
    compiled = jax.jit(function, out_shardings=NamedSharding(mesh, PartitionSpec()))

    def values_of(params: tuple[Any, ...], batch: Batch) -> tuple[jax.Array, ...]:
        mine = {key: batch[key][start:stop] for key in _INPUTS}
        with jax.set_mesh(mesh):
            return compiled(*params, global_batch_array(mine, mesh=mesh, global_batch=batch_size))

    def values(*params: Any, rows: EvaluationRows) -> Iterator[tuple[tuple[jax.Array, ...], Batch]]:
        waiting: tuple[tuple[jax.Array, ...], Batch] | None = None
        for batch in rows.batches(batch_size):
            watchdog.note("evaluate")
            found = values_of(params, batch)
            if waiting is not None:  # fetched one batch late, so that the devices never wait for the host
                yield waiting
            waiting = found, batch
        if waiting is not None:
            yield waiting

    return values


def token_sums(
    function: Callable[..., tuple[jax.Array, ...]], *, mesh: Mesh, batch_size: int
) -> Callable[..., list[float]]:
    """Returns `sums(*params, rows=rows)`: the sum of each of the function's values over all scored tokens.

    Values leave the devices token by token and are summed on the host in float64, in the order of the rows: the size of
    the set costs no precision, and neither mesh nor processes change the sum. Arguments and errors as of
    `token_values`.
    """
    values = token_values(function, mesh=mesh, batch_size=batch_size)

    def sums(*params: Any, rows: EvaluationRows) -> list[float]:
        total = np.zeros(1)
        for found, batch in values(*params, rows=rows):
            total = total + _weighted_sums(found, batch["loss_weights"])
        return total.tolist()

    return sums


def _weighted_sums(values: tuple[jax.Array, ...], weights_BT: np.ndarray) -> np.ndarray:
    """One float64 sum for each of the values, without tokens of weight 0: their values may be anything, also NaN."""
    counted_BT = weights_BT > 0
    weights = weights_BT[counted_BT].astype(np.float64)
    return np.array([np.sum(np.asarray(value_BT, np.float64)[counted_BT] * weights) for value_BT in values])
