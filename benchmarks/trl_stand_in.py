"""TRL's preference loss without its trainer: DPOTrainer's own method, on an object that has what the method reads.

The benchmark times it, and the parity tests compare with it. It needs torch and trl.
"""

import collections
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np

from allam_jax.alignment.sample_cache import Samples
from allam_jax.alignment.settings import DpoSettings

IGNORED = -100  # label of a token that is not learned


def padded(samples: Samples, numbers: Sequence[int]) -> tuple[Any, Any, Any]:
    """Ids, labels (ignored where nothing is learned) and attention, padded on the right as torch's collators do."""
    import torch

    length = max(int(samples.lengths[number]) for number in numbers)
    ids, labels = np.zeros((len(numbers), length), int), np.full((len(numbers), length), IGNORED)
    for row, number in enumerate(numbers):
        sample = samples[number]
        ids[row, : len(sample)] = sample.ids
        labels[row, : len(sample)] = np.where(sample.turns > 0, sample.ids, IGNORED)
    there = np.arange(length) < samples.lengths[list(numbers)][:, None]
    return torch.tensor(ids), torch.tensor(labels), torch.tensor(there.astype(int))


def values_of(model: Any, ids: Any, labels: Any, there: Any) -> SimpleNamespace:
    """What TRL's patched model gives: log-probabilities of the learned tokens, 0 elsewhere, and what it logs."""
    import torch

    logits = model(input_ids=ids, attention_mask=there, use_cache=False).logits[:, :-1]
    learned = labels[:, 1:] != IGNORED
    targets = torch.where(learned, labels[:, 1:], 0)
    logp = -torch.nn.functional.cross_entropy(logits.transpose(1, 2), targets, reduction="none") * learned
    zeros = torch.zeros_like(logp)
    return SimpleNamespace(log_probs=logp, entropy=zeros, mean_logits=zeros, is_top1=learned)


class DpoStandIn:
    """DPOTrainer's loss of one batch, all chosen sides first, against a reference whose values are cached."""

    def __init__(self, settings: DpoSettings, *, reference: Any, ids: Any, labels: Any, there: Any):
        """`settings` say the loss, beta and smoothing; `reference` is a model as it is now."""
        import torch

        with torch.no_grad():
            chosen, rejected = values_of(reference, ids, labels, there).log_probs.sum(1).chunk(2)
        self._batch = ids, labels, there
        self._inputs = {
            "input_ids": ids,
            "attention_mask": there,
            "completion_mask": (labels != IGNORED).long(),
            "ref_chosen_logps": chosen,
            "ref_rejected_logps": rejected,
        }
        self._trainer = SimpleNamespace(
            model=SimpleNamespace(training=True),
            accelerator=SimpleNamespace(device="cpu", gather=lambda x: x, gather_for_metrics=lambda x: x),
            beta=settings.beta,
            label_smoothing=settings.label_smoothing,
            loss_types=[settings.loss],
            loss_weights=[1.0],
            f_divergence_type="reverse_kl",
            precompute_ref_logps=True,
            aux_loss_enabled=False,
            use_weighting=False,
            ld_alpha=None,
            _metrics={"train": collections.defaultdict(list)},
            _total_train_tokens=0,
            _tp_size=1,
        )

    def loss(self, model: Any) -> Any:
        """The loss of a model, as a tensor with its graph."""
        from trl import DPOTrainer

        def patched(**_: Any) -> SimpleNamespace:
            return values_of(model, *self._batch)

        return DPOTrainer._compute_loss(self._trainer, patched, self._inputs, return_outputs=False)

    def logged(self) -> dict[str, float]:
        """What TRL has logged of the last loss, by its names."""
        return {name: values[-1] for name, values in self._trainer._metrics["train"].items()}
