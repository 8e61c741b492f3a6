"""Bits per byte of held-out text: the loss that can be compared across tokenizers.

    bits per byte = sum of -log2 p(token | document so far)  /  UTF-8 bytes of the documents

The sum runs over every token of every document. The number says how many bits the model needs to store one byte of the
text, whatever pieces the tokenizer cuts it into.
"""

import math
from collections.abc import Callable

import jax
from jax.sharding import Mesh

from allam_jax.data.evaluation_rows import EvaluationRows
from allam_jax.evaluation.token_sums import token_sums
from allam_jax.model.llama import Params, bind
from allam_jax.model.llama_config import ComputeOptions, LlamaConfig
from allam_jax.training.losses import token_nll

Result = dict[str, float]


def nll_function(
    *, config: LlamaConfig, options: ComputeOptions, num_chunks: int = 1
) -> Callable[[Params, dict[str, jax.Array]], tuple[jax.Array]]:
    """`nll(params, batch)`: the negative log-likelihood of every target in nats, [B, T], for `token_values`."""

    def nll(params: Params, batch: dict[str, jax.Array]) -> tuple[jax.Array]:
        model = bind(params, config=config, options=options)
        hidden_BTD = model.hidden(batch["tokens"], segment_ids_BT=batch["segment_ids"], positions_BT=batch["positions"])
        nll_BT = token_nll(
            hidden_BTD,
            model.head_DV,
            targets_BT=batch["targets"],
            vocab_size=config.vocab_size,
            num_chunks=num_chunks,
        )
        return (nll_BT,)

    return nll


def make_evaluator(
    *, config: LlamaConfig, options: ComputeOptions, mesh: Mesh, batch_size: int, num_chunks: int = 1
) -> Callable[[Params, EvaluationRows], Result]:
    """Returns `evaluate(params, rows)`, compiled once for each length of rows.

    Its result: `bits_per_byte`, `nats` (summed negative log-likelihood), `bytes`, `tokens` (scored targets) and
    `nats_per_token`. Likelihoods are float32 on the devices and summed in float64 (`token_sums`).

    Args:
        config: shapes.
        options: how to compute; dropout is off.
        mesh: it cuts the rows of a batch. With several processes, each calls with all rows.
        batch_size: rows that are scored at a time.
        num_chunks: logits of 1 / num_chunks of a batch exist at a time.

    Raises:
        UserError: the mesh does not divide the batch size.
    """

    nll = nll_function(config=config, options=options, num_chunks=num_chunks)
    sums = token_sums(nll, mesh=mesh, batch_size=batch_size)

    def evaluate(params: Params, rows: EvaluationRows) -> Result:
        (nats,) = sums(params, rows=rows)
        return {
            "bits_per_byte": nats / math.log(2) / rows.bytes,
            "nats": nats,
            "bytes": rows.bytes,
            "tokens": rows.tokens,
            "nats_per_token": nats / rows.tokens,
        }

    return evaluate
