"""Loss of held-out replies, by language and by the number of the turn: where a model gets worse with every turn."""

from collections.abc import Callable, Sequence

import numpy as np
from jax.sharding import Mesh

from allam_jax.alignment.packed_samples import PackedRows
from allam_jax.data.evaluation_rows import EvaluationRows
from allam_jax.evaluation.bits_per_byte import nll_function
from allam_jax.evaluation.token_sums import token_values
from allam_jax.model.llama import Params
from allam_jax.model.llama_config import ComputeOptions, LlamaConfig

SUITE = "replies"
_LAST_TURN = 4  # later ones are counted with it


def reply_losses(
    rows: PackedRows,
    *,
    languages: Sequence[str],
    config: LlamaConfig,
    options: ComputeOptions,
    mesh: Mesh,
    batch_size: int,
    num_chunks: int = 1,
) -> Callable[[Params], dict[str, dict[str, float]]]:
    """Returns `scores(params)`: name -> `loss`, the mean over all learned tokens in nats.

    The names are those of the languages, and `LANGUAGE_turn1` to `LANGUAGE_turn4` (the fourth and later ones).

    Args:
        rows: of held-out samples.
        languages: label of each source.
        config: shapes.
        options: how to compute; dropout is off.
        mesh: cuts the rows of a batch.
        batch_size: rows at a time.
        num_chunks: logits of 1 / num_chunks of a batch exist at a time.
    """
    held_out = _grouped(rows)
    names = [f"{language}_turn{turn}" for language in languages for turn in range(1, _LAST_TURN + 1)]
    values = token_values(
        nll_function(config=config, options=options, num_chunks=num_chunks), mesh=mesh, batch_size=batch_size
    )

    def scores(params: Params) -> dict[str, dict[str, float]]:
        nats, tokens = np.zeros(len(names)), np.zeros(len(names))
        for (nll_BT,), batch in values(params, rows=held_out):
            learned_BT = batch["loss_weights"] > 0
            groups = batch["source_ids"][learned_BT]
            nats += np.bincount(groups, np.asarray(nll_BT, np.float64)[learned_BT], len(names))
            tokens += np.bincount(groups, minlength=len(names))
        found: dict[str, dict[str, float]] = {}
        for language in dict.fromkeys(languages):
            turns = [place for place, name in enumerate(names) if name.rpartition("_")[0] == language]
            by_name = {language: turns} | {
                f"{language}_turn{turn}": [place for place in turns if names[place].endswith(f"_turn{turn}")]
                for turn in range(1, _LAST_TURN + 1)
            }
            for name, places in by_name.items():
                if count := tokens[places].sum():
                    found[name] = {"loss": float(nats[places].sum() / count)}
        return found

    return scores


def _grouped(rows: PackedRows) -> EvaluationRows:
    """The rows, with the number of the group (source and turn) of a learned token in `source_ids`."""
    packed = rows.fitted().rows(np.random.default_rng(0))
    order = [packed[row] for row in range(len(packed))]
    batch = rows.batch(order)
    for row, items in enumerate(order):
        numbers = rows.items[items].ravel()
        turns = np.concatenate([rows.samples[int(number)].turns[1:] for number in numbers])
        place = (row, slice(0, len(turns)))
        batch["source_ids"][place] = batch["source_ids"][place] * _LAST_TURN + np.clip(turns, 1, _LAST_TURN) - 1
    learned = int(np.sum(batch["loss_weights"] > 0))
    return EvaluationRows(rows=batch, documents=len(rows.items), bytes=0, tokens=learned)
