"""What a vocabulary expansion did to a network before any training: the step-0 report.

Expansion by copying leaves unchanged what the network computes from old tokens. Only the new columns of the head can
move its predictions: they take probability from the old ones. The report says how far the distribution over old tokens
has moved, how much of it the new tokens took, and how many bits both networks need for a byte of each language.

B batch, T sequence, D model width, U old vocabulary, V new vocabulary, K tokens that both have.
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.sharding import Mesh
from jaxtyping import Array

from allam_jax.data.evaluation_rows import EvaluationRows
from allam_jax.errors import UserError
from allam_jax.evaluation.bits_per_byte import make_evaluator
from allam_jax.evaluation.token_sums import token_sums
from allam_jax.model.llama import Llama, Params, bind
from allam_jax.model.llama_config import ComputeOptions, LlamaConfig
from allam_jax.tokenizer.provenance import ExpansionPlan


def step0_report(
    *,
    base: tuple[Params, LlamaConfig],
    expanded: tuple[Params, LlamaConfig],
    plan: ExpansionPlan,
    base_rows: Mapping[str, EvaluationRows],
    expanded_rows: Mapping[str, EvaluationRows],
    options: ComputeOptions,
    mesh: Mesh,
    batch_size: int = 8,
    num_chunks: int = 4,
) -> dict[str, dict[str, float]]:
    """Compares a network before and after its expansion on held-out text.

    Args:
        base, expanded: parameters and configuration, on `mesh`.
        plan: the expansion.
        base_rows: held-out documents by language, in the base's tokens.
        expanded_rows: the same documents in the merged tokenizer's.
        options: how to compute; dropout is off.
        mesh: it cuts the rows of a batch.
        batch_size: rows at a time.
        num_chunks: logits of 1 / num_chunks of the positions exist at a time.

    Returns:
        For each language:
        bits_per_byte_base, bits_per_byte_expanded: each network with its own tokenizer.
        kl_old_tokens: KL(base || expanded) in nats per token after the same old tokens. The expanded network's
            distribution is restricted to old tokens and renormalised.
        kl: the same against its whole distribution. It includes what the new tokens take.
        new_token_probability: mean probability of all new tokens together, in the merged tokenizer's segmentation.

    Raises:
        UserError: the mesh does not divide the batch size, or the text needs a token that the expansion dropped.
    """
    evaluate_base, evaluate_expanded = (
        make_evaluator(config=config, options=options, mesh=mesh, batch_size=batch_size, num_chunks=num_chunks)
        for _, config in (base, expanded)
    )
    divergence_of = _divergence(base[1], expanded[1], plan=plan, options=options, num_chunks=num_chunks)
    new_probability_of = _new_probability(expanded[1], plan=plan, options=options, num_chunks=num_chunks)
    divergence = token_sums(divergence_of, mesh=mesh, batch_size=batch_size)
    new_probability = token_sums(new_probability_of, mesh=mesh, batch_size=batch_size)
    report = {}
    for name, rows in base_rows.items():
        logging.info("step-0 report: %s, %s tokens of held-out text", name, f"{rows.tokens:,}")
        _check_kept(rows, plan, name=name)
        kl_old, kl = divergence(base[0], expanded[0], rows=rows)
        (probability,) = new_probability(expanded[0], rows=expanded_rows[name])
        report[name] = {
            "bits_per_byte_base": evaluate_base(base[0], rows)["bits_per_byte"],
            "bits_per_byte_expanded": evaluate_expanded(expanded[0], expanded_rows[name])["bits_per_byte"],
            "kl_old_tokens": kl_old / rows.tokens,
            "kl": kl / rows.tokens,
            "new_token_probability": probability / expanded_rows[name].tokens,
        }
    return report


def _divergence(
    base_config: LlamaConfig,
    expanded_config: LlamaConfig,
    *,
    plan: ExpansionPlan,
    options: ComputeOptions,
    num_chunks: int,
) -> Callable[..., tuple[Array, ...]]:
    """(base params, expanded params, batch in base tokens) -> the two divergences at each position, [B, T]."""
    merged_K, base_K = plan.kept[:, 0], plan.kept[:, 1]
    merged_of_base_U = _merged_of_base(plan)

    def divergence(base_params: Params, expanded_params: Params, batch: dict[str, Array]) -> tuple[Array, ...]:
        base = bind(base_params, config=base_config, options=options)
        expanded = bind(expanded_params, config=expanded_config, options=options)
        base_head_DK, expanded_head_DV = base.head_DV[:, base_K], expanded.head_DV

        def position(hidden: tuple[Array, Array]) -> tuple[Array, Array]:
            base_BK = jax.nn.log_softmax(_logits(hidden[0], base_head_DK))
            logits_BV = _logits(hidden[1], expanded_head_DV)[:, : expanded_config.vocab_size]
            kept_BK = logits_BV[:, merged_K]
            kl_B = jnp.sum(jnp.exp(base_BK) * (base_BK - jax.nn.log_softmax(kept_BK)), axis=-1)
            taken_B = jax.nn.logsumexp(logits_BV, axis=-1) - jax.nn.logsumexp(kept_BK, axis=-1)
            return kl_B, kl_B + taken_B

        expanded_batch = batch | {"tokens": jnp.asarray(merged_of_base_U)[batch["tokens"]]}
        hidden = _hidden(base, batch), _hidden(expanded, expanded_batch)
        return _by_position(position, hidden, num_chunks=num_chunks)

    return divergence


def _new_probability(
    config: LlamaConfig, *, plan: ExpansionPlan, options: ComputeOptions, num_chunks: int
) -> Callable[..., tuple[Array, ...]]:
    """(params, batch in merged tokens) -> the probability of all new tokens at each position, ([B, T],)."""
    is_new_V = np.ones(config.vocab_size, bool)
    is_new_V[plan.kept[:, 0]] = False

    def new_probability(params: Params, batch: dict[str, Array]) -> tuple[Array, ...]:
        model = bind(params, config=config, options=options)
        head_DV = model.head_DV

        def position(hidden: tuple[Array]) -> tuple[Array]:
            probabilities_BV = jax.nn.softmax(_logits(hidden[0], head_DV)[:, : config.vocab_size])
            return (jnp.sum(probabilities_BV, axis=-1, where=is_new_V),)

        return _by_position(position, (_hidden(model, batch),), num_chunks=num_chunks)

    return new_probability


def _hidden(model: Llama, batch: dict[str, Array]) -> Array:
    return model.hidden(batch["tokens"], segment_ids_BT=batch["segment_ids"], positions_BT=batch["positions"])


def _logits(x_BD: Array, head_DV: Array) -> Array:
    return jnp.einsum("BD,DV->BV", x_BD, head_DV.astype(x_BD.dtype), preferred_element_type=jnp.float32)


def _by_position(function: Callable, hidden: tuple[Array, ...], *, num_chunks: int) -> tuple[Array, ...]:
    """Applies a function of [B, D] arrays to each position of [B, T, D] ones, some positions at a time."""
    positions = hidden[0].shape[1]
    result = jax.lax.map(
        function, tuple(jnp.moveaxis(x_BTD, 1, 0) for x_BTD in hidden), batch_size=-(-positions // num_chunks)
    )
    return tuple(values_TB.T for values_TB in result)


def _merged_of_base(plan: ExpansionPlan) -> np.ndarray:
    """The new id of each old one, [U]; -1 where there is none."""
    merged_of_base_U = np.full(plan.base_size, -1, np.int32)
    merged_of_base_U[plan.kept[:, 1]] = plan.kept[:, 0]
    return merged_of_base_U


def _check_kept(rows: EvaluationRows, plan: ExpansionPlan, *, name: str) -> None:
    used = np.unique(rows.rows["tokens"][rows.rows["segment_ids"] > 0])
    dropped = used[_merged_of_base(plan)[used] < 0]
    if dropped.size:
        raise UserError(
            f"step-0 report on {name}: base token {dropped[0]} is not in the new vocabulary; expected an expansion "
            "that keeps all old tokens"
        )
