"""Scores of held-out pairs, and what is told while a run on pairs goes wrong."""

from collections.abc import Callable

import jax
import numpy as np
from absl import logging
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from allam_jax import watchdog
from allam_jax.alignment.packed_samples import PackedRows
from allam_jax.alignment.preference_loss import Preference
from allam_jax.alignment.settings import DpoSettings
from allam_jax.model.llama import Params
from allam_jax.parallel.distributed import global_batch_array, process_rows
from allam_jax.parallel.mesh import check_batch
from allam_jax.training.loop import Watcher
from allam_jax.training.metrics import Row
from allam_jax.training.objective import Prepare

SUITE = "preferences"
_LENGTH_BIAS = 1.25  # chosen answers longer than rejected ones by this factor are told


def preference_scores(
    rows: PackedRows,
    *,
    objective: Preference,
    prepare: Prepare,
    mesh: Mesh,
    batch_size: int,
) -> Callable[[Params], dict[str, dict[str, float]]]:
    """Returns `scores(params)`: the means over all held-out pairs of what the objective sums, without dropout.

    Args:
        rows: of held-out pairs.
        objective: its `most_pairs` must suffice for these rows.
        prepare: of the run.
        mesh: cuts the rows of a batch.
        batch_size: rows at a time.
    """
    check_batch(batch_size, accumulation=1, mesh=mesh, key="eval.batch_size")
    start, stop = process_rows(mesh, global_batch=batch_size)
    packed = rows.fitted().rows(np.random.default_rng(0))
    order = [packed[row] for row in range(len(packed))]
    order += [np.zeros(0, np.int64)] * (-len(order) % batch_size)
    compiled = jax.jit(
        lambda params, batch: objective.summed_loss(params, batch, None)[1],
        out_shardings=NamedSharding(mesh, PartitionSpec()),
    )

    def scores(params: Params) -> dict[str, dict[str, float]]:
        total: dict[str, float] = {}
        for first in range(0, len(order), batch_size):
            watchdog.note("evaluate")
            mine = rows.batch(order[first + start : first + stop])
            batch = prepare(params, global_batch_array(mine, mesh=mesh, global_batch=batch_size))
            with jax.set_mesh(mesh):
                sums = jax.device_get(compiled(params, batch))
            total = {name: total.get(name, 0.0) + float(value) for name, value in sums.items()}
        return {"held_out": {name: value / len(rows.items) for name, value in total.items()}}

    return scores


def preference_watcher(settings: DpoSettings) -> Watcher:
    """Warns, once each, where chosen answers lose their probability; ends a run that strays from the reference."""
    told: set[str] = set()

    def watch(row: Row) -> str | None:
        if row.get("change_chosen", 0.0) < -settings.collapse_nats and "collapse" not in told:
            told.add("collapse")
            logging.warning(
                "step %d: the chosen answers have lost %.2f nats per token against the reference: the model learns to "
                "avoid both sides; lower the learning rate, raise dpo.beta, or set dpo.nll_weight",
                *(row["step"], -row["change_chosen"]),
            )
        if settings.max_kl and row.get("kl", 0.0) > settings.max_kl:
            return (
                f"kl was {row['kl']:.3g} nats per token at step {row['step']}, above dpo.max_kl = {settings.max_kl:g}"
            )
        return None

    return watch


def tell_length_bias(rows: PackedRows) -> float:
    """The mean learned tokens of chosen over those of rejected answers; a warning where chosen ones are longer."""
    learned = [[int(np.count_nonzero(rows.samples[int(n)].turns)) for n in pair] for pair in rows.items[:2000]]
    chosen, rejected = np.mean(learned, axis=0)
    ratio = float(chosen / max(rejected, 1.0))
    if ratio > _LENGTH_BIAS:
        logging.warning(
            "chosen answers are %.2f times as long as rejected ones: the model will learn to write more; consider "
            "dpo.loss=sigmoid_norm or simpo, or pairs of like length",
            ratio,
        )
    return ratio
