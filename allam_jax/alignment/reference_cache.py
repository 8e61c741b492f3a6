"""The reference's log-probabilities: computed once for all pairs and kept on disk, or live for every batch.

Both use the forward pass of the objective itself, in the same rows. What is on disk is named after a hash of the
weights, the samples and the way of computing, never after a path: changed weights can not meet old numbers.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.sharding import Mesh

from allam_jax.alignment.packed_samples import Column, PackedRows
from allam_jax.alignment.preference_loss import POLICY, REFERENCE, Preference
from allam_jax.alignment.sample_cache import Samples
from allam_jax.checksums import hash_json, is_whole, write_list
from allam_jax.data.batch import Batch as HostBatch
from allam_jax.data.evaluation_rows import EvaluationRows
from allam_jax.errors import UserError
from allam_jax.evaluation.token_sums import token_values
from allam_jax.files import atomic_path, read_array, write_array
from allam_jax.model.llama import Params
from allam_jax.parallel.distributed import barrier, broadcast, is_main_process
from allam_jax.parallel.mesh import batch_sharding
from allam_jax.training.objective import Batch, Prepare

_FILE = "log_probabilities.npy"
_REMEDY = "remove the directory: it is computed again"
_BLOCK = 64  # batches whose rows are in memory at a time


def cached_reference(
    folder: Path,
    *,
    identity: Mapping[str, Any],
    samples: Samples,
    compute: Callable[[], np.ndarray],
) -> Column:
    """The column of the reference, from `folder`, or computed and written there.

    Args:
        folder: holds a directory for each identity.
        identity: of the weights and of the way of computing, as JSON values; that of the samples is added.
        samples: all pairs.
        compute: gives `reference_values`; called where they are not there, by all processes.
    """
    directory = folder / hash_json([identity, samples.identity])[:32]
    if not broadcast(is_main_process() and is_whole(directory)):
        values = compute()
        if is_main_process():
            with atomic_path(directory) as temporary:
                temporary.mkdir()
                write_array(temporary / _FILE, values)
                write_list(temporary)
        barrier("reference")
    else:
        logging.info("%s: the reference's log-probabilities are there", directory)
    ends = np.cumsum(samples.lengths - 1)
    stored = read_array(directory / _FILE, remedy=_REMEDY, mapped=True)
    if stored.shape != (ends[-1],) or stored.dtype != np.float32:
        found = f"{stored.dtype} of shape {stored.shape} instead of {ends[-1]:,} of float32"
        raise UserError(f"{directory / _FILE}: holds {found}; {_REMEDY}")

    def column(number: int) -> np.ndarray:
        end = int(ends[number])
        return stored[end - int(samples.lengths[number]) + 1 : end]

    return column


def reference_values(
    params: Params, *, objective: Preference, rows: PackedRows, mesh: Mesh, batch_size: int
) -> np.ndarray:
    """The log-probability of every target of every sample, float32, in the order of the samples; NaN if not packed.

    Args:
        params: of the reference.
        objective: whose forward pass is used.
        rows: how the pairs are packed; their items are all pairs.
        mesh: where.
        batch_size: rows at a time.
    """
    samples = rows.samples
    ends = np.cumsum(samples.lengths - 1)
    found = np.full(ends[-1], np.nan, np.float32)
    values = token_values(
        lambda params, batch: (objective.log_probabilities(params, batch),), mesh=mesh, batch_size=batch_size
    )
    for block, batch in _blocks(rows, size=_BLOCK * batch_size):
        at = 0
        for (logp_BT,), _ in values(params, rows=EvaluationRows(rows=batch, documents=0, bytes=0, tokens=0)):
            for items, logp_T in zip(block[at : at + batch_size], np.asarray(logp_BT), strict=False):
                start = 0
                for number in rows.items[items].ravel().tolist():
                    length = int(samples.lengths[number]) - 1
                    found[ends[number] - length : ends[number]] = logp_T[start : start + length]
                    start += length
            at += batch_size
    return found


def live_reference(reference: Params, *, objective: Preference, mesh: Mesh) -> Prepare:
    """Returns what adds the reference's log-probabilities to a batch on the devices; its parameters are kept.

    Without dropout it adds those of the model too, from the same program: equal weights give equal bits.
    """
    compiled = jax.jit(objective.log_probabilities, out_shardings=batch_sharding(mesh))

    def prepare(params: Params, batch: Batch) -> Batch:
        with jax.set_mesh(mesh):
            found = {REFERENCE: compiled(reference, batch)}
            return batch | found | ({POLICY: compiled(params, batch)} if POLICY in objective.batch_dtypes else {})

    return prepare


def _blocks(rows: PackedRows, *, size: int) -> Iterator[tuple[list[np.ndarray], HostBatch]]:
    """The rows of all items, `size` at a time: the items of each, and the arrays."""
    plain = dataclasses.replace(rows, columns={})
    packed = plain.fitted().rows(np.random.default_rng(0))
    order = [packed[row] for row in range(len(packed))]
    for start in range(0, len(order), size):
        block = order[start : start + size]
        yield block, plain.batch(block)
