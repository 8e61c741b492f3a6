"""The objective of preference optimisation: chosen and rejected are neighbouring segments of a row.

For a pair, with y_c and y_r the learned tokens of its sides, and pi and ref the log-probabilities of model and
reference summed over them (per token for the forms that are marked):

    h = (pi(y_c) - ref(y_c)) - (pi(y_r) - ref(y_r))
    sigmoid       -(1 - e) log s(b h) - e log s(-b h)                      Rafailov et al. 2023, 2305.18290
    sigmoid_norm  the same, per token                                      Lambert et al. 2024, 2411.15124
    robust        (-(1 - e) log s(b h) + e log s(-b h)) / (1 - 2 e)        Chowdhury et al. 2024, 2403.00409
    ipo           (h - 1 / (2 b))^2, per token                             Azar et al. 2023, 2310.12036
    simpo         -(1 - e) log s(b h - g) - e log s(g - b h), per token, ref = 0     Meng et al. 2024, 2405.14734

with b = beta, e = label_smoothing, g = simpo_gamma, s the sigmoid. `nll_weight` adds the negative log-likelihood per
token of the chosen side. The loss is the mean over the pairs of a step.

Segments 2 p - 1 and 2 p are the sides of pair p. Shapes as everywhere; P pairs of a row, S = 2 P + 1 segments.
"""

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from allam_jax.alignment.settings import DpoSettings
from allam_jax.data.batch import DTYPES
from allam_jax.model.llama import Params
from allam_jax.model.llama_config import ComputeOptions, LlamaConfig
from allam_jax.training.losses import token_nll
from allam_jax.training.objective import Batch, Metrics, hidden_and_head

# Keys of a batch with the log-probabilities of every target.
REFERENCE = "reference"
POLICY = "policy"  # of the model, from the program that gave those of the reference
PER_TOKEN = frozenset({"sigmoid_norm", "ipo", "simpo"})
WITHOUT_REFERENCE = frozenset({"simpo"})


class Sides(NamedTuple):
    """Values of the chosen and the rejected side of every pair, [B, P]; 0 where there is no pair."""

    chosen: jax.Array
    rejected: jax.Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preference:
    """An Objective over pairs.

    Named sums, each to be read per pair: `loss`, those of `pair_metrics`, and with a reference `kl` and `change_chosen`
    (of the chosen side's log-probability per token against the reference's).
    """

    model: LlamaConfig
    options: ComputeOptions
    settings: DpoSettings
    most_pairs: int  # of a row
    num_chunks: int = 1

    @property
    def has_reference(self) -> bool:
        """Whether the loss compares with a reference."""
        return self.settings.loss not in WITHOUT_REFERENCE

    @property
    def batch_dtypes(self) -> Mapping[str, np.dtype]:
        """See Objective: where there is a reference, log-probabilities of every target are added."""
        is_exact = self.settings.reference == "live" and not self.options.has_dropout
        names = (REFERENCE, *([POLICY] if is_exact else [])) if self.has_reference else ()
        return DTYPES | dict.fromkeys(names, np.dtype(np.float32))

    def normaliser(self, batch: Batch) -> jax.Array:
        """The number of pairs; 1 where there are none."""
        return jnp.maximum(jnp.sum(jnp.max(batch["segment_ids"], axis=1) // 2).astype(jnp.float32), 1.0)

    def summed_loss(self, params: Params, batch: Batch, key: jax.Array | None) -> tuple[jax.Array, Metrics]:
        """See Objective. Dropout is that of the options, and there is none without a key."""
        logp_BT = self.log_probabilities(params, batch, key=key)
        if POLICY in batch:  # its values, with this program's gradient
            logp_BT = batch[POLICY] + (logp_BT - jax.lax.stop_gradient(logp_BT))
        # The difference is taken token by token: where the weights are equal, it is 0 whatever the order of the sums.
        ratio_BT = logp_BT - batch[REFERENCE] if self.has_reference else logp_BT
        policy, ratios, tokens = (self._by_side(of, batch) for of in (logp_BT, ratio_BT, jnp.ones_like(logp_BT)))
        losses_BP, rewards = pair_losses(policy=policy, ratios=ratios, tokens=tokens, settings=self.settings)
        by_pair = pair_metrics(policy=policy, tokens=tokens, rewards=rewards)
        if self.has_reference:
            by_pair["change_chosen"] = ratios.chosen / jnp.maximum(tokens.chosen, 1.0)
            by_pair["kl"] = self._kl(jax.lax.stop_gradient(ratio_BT), batch, tokens)
        there_BP = tokens.chosen > 0
        sums = {name: jnp.sum(jnp.where(there_BP, value, 0.0)) for name, value in by_pair.items()}
        loss = jnp.sum(jnp.where(there_BP, losses_BP, 0.0))
        return loss, {"loss": loss} | sums

    def log_probabilities(self, params: Params, batch: Batch, *, key: jax.Array | None = None) -> jax.Array:
        """Of every target, [B, T]; also those of the reference. Without a key there is no dropout."""
        hidden_BTD, head_DV = hidden_and_head(params, batch, config=self.model, options=self.options, key=key)
        return -token_nll(
            hidden_BTD,
            head_DV,
            targets_BT=batch["targets"],
            vocab_size=self.model.vocab_size,
            num_chunks=self.num_chunks,
        )

    def _kl(self, log_ratio_BT: jax.Array, batch: Batch, tokens: Sides) -> jax.Array:
        """Half the mean square of log(pi / ref) over a pair's learned tokens, [B, P].

        It is near KL(pi || ref) where the two are close, is never negative, and stays finite where rejected answers,
        which the model has not sampled, become improbable.
        """
        sums = self._by_side(jnp.square(log_ratio_BT) / 2, batch)
        return (sums.chosen + sums.rejected) / jnp.maximum(tokens.chosen + tokens.rejected, 1.0)

    def _by_side(self, values_BT: jax.Array, batch: Batch) -> Sides:
        """Sums over the learned tokens of each side; a value that does not count may be anything, also NaN."""
        counted_BT = jnp.where(batch["loss_weights"] > 0, values_BT, 0.0)
        segments_S = jnp.arange(1, 2 * self.most_pairs + 1)
        is_in_BTS = batch["segment_ids"][:, :, None] == segments_S
        sums_BS = jnp.sum(jnp.where(is_in_BTS, counted_BT[:, :, None], 0.0), axis=1)
        return Sides(chosen=sums_BS[:, 0::2], rejected=sums_BS[:, 1::2])


def pair_losses(*, policy: Sides, ratios: Sides, tokens: Sides, settings: DpoSettings) -> tuple[jax.Array, Sides]:
    """The loss of every pair [B, P], by the formulas above, and the rewards of its sides: b (pi(y) - ref(y)).

    Rewards are those of sums, also where the loss is per token; those of simpo are per token.

    Args:
        policy: summed log-probabilities of the model.
        ratios: the same, less those of the reference if the loss has one.
        tokens: how many are summed.
        settings: which loss.
    """
    count = Sides(*(jnp.maximum(side, 1.0) for side in tokens))
    rewards = ratios
    if settings.loss in PER_TOKEN:
        ratios = Sides(*(ratio / n for ratio, n in zip(ratios, count, strict=True)))
        rewards = ratios if settings.loss in WITHOUT_REFERENCE else rewards
    beta, smoothing, h_BP = settings.beta, settings.label_smoothing, ratios.chosen - ratios.rejected
    if settings.loss == "ipo":
        losses_BP = jnp.square(h_BP - 1 / (2 * beta))
    else:
        logits_BP = beta * h_BP - (settings.simpo_gamma if settings.loss == "simpo" else 0.0)
        right_BP, swapped_BP = -jax.nn.log_sigmoid(logits_BP), -jax.nn.log_sigmoid(-logits_BP)
        if settings.loss == "robust":
            losses_BP = ((1 - smoothing) * right_BP - smoothing * swapped_BP) / (1 - 2 * smoothing)
        else:
            losses_BP = (1 - smoothing) * right_BP + smoothing * swapped_BP
    if settings.nll_weight:
        losses_BP -= settings.nll_weight * policy.chosen / count.chosen
    return losses_BP, Sides(*(jax.lax.stop_gradient(beta * side) for side in rewards))


def pair_metrics(*, policy: Sides, tokens: Sides, rewards: Sides) -> Metrics:
    """What is logged of every pair, [B, P].

    `reward_chosen`, `reward_rejected`, `margin` (their difference), `accuracy` (1 where it is above 0), `logp_chosen`,
    `logp_rejected` (of the model, summed over the answer), `tokens_chosen`, `tokens_rejected`.
    """
    margin_BP = rewards.chosen - rewards.rejected
    return {
        "reward_chosen": rewards.chosen,
        "reward_rejected": rewards.rejected,
        "margin": margin_BP,
        "accuracy": (margin_BP > 0).astype(jnp.float32),
        "logp_chosen": policy.chosen,
        "logp_rejected": policy.rejected,
        "tokens_chosen": tokens.chosen,
        "tokens_rejected": tokens.rejected,
    }
