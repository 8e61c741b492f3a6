"""Twenty training steps against transformers and torch.optim.AdamW, from the same weights and batches, in float32."""

import jax
import numpy as np
import pytest
from llama_pair import SHAPES, make_pair

from allam_jax.model.llama_config import ComputeOptions
from allam_jax.parallel.mesh import batch_sharding, make_mesh
from allam_jax.training.objective import NextToken
from allam_jax.training.optimizer import make_optimizer
from allam_jax.training.schedules import make_schedule
from allam_jax.training.settings import GuardSettings, OptimizerSettings, ScheduleSettings
from allam_jax.training.state import abstract_state, start_state
from allam_jax.training.step import make_train_step

pytestmark = pytest.mark.parity

STEPS, B, T = 20, 4, 32
PEAK_LR, WARMUP, FINAL = 3e-3, 5, 0.1
B1, B2, EPS, DECAY, CLIP = 0.9, 0.95, 1e-8, 0.1, 1.0


def batches(vocab_size: int) -> list[np.ndarray]:
    """Token ids [B, T + 1] of a noisy chain, so that there is something to learn within twenty steps."""
    rng = np.random.default_rng(0)
    successor = rng.permutation(vocab_size)
    result = []
    for _ in range(STEPS):
        ids = rng.integers(0, vocab_size, (B, T + 1))
        for t in range(1, T + 1):
            ids[:, t] = np.where(rng.random(B) < 0.9, successor[ids[:, t - 1]], ids[:, t])
        result.append(ids)
    return result


def torch_losses(model, data) -> list[float]:
    import torch

    decayed = [p for name, p in model.named_parameters() if "norm" not in name]
    spared = [p for name, p in model.named_parameters() if "norm" in name]
    groups = [{"params": decayed, "weight_decay": DECAY}, {"params": spared, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=PEAK_LR, betas=(B1, B2), eps=EPS)

    def learning_rate(step: int) -> float:
        if step < WARMUP:
            return (step + 1) / (WARMUP + 1)
        progress = (step - WARMUP) / (STEPS - WARMUP)
        return FINAL + (1 - FINAL) * 0.5 * (1 + np.cos(np.pi * progress))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, learning_rate)
    losses = []
    model.train()
    for ids in data:
        logits = model(torch.tensor(ids[:, :-1])).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.tensor(ids[:, 1:]).flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return losses


def our_losses(pair, data, *, accumulation: int) -> list[float]:
    mesh = make_mesh({"data": 1, "fsdp": 1, "tensor": 1}, devices=jax.devices()[:1])
    schedule = make_schedule(
        ScheduleSettings(name="cosine", peak_lr=PEAK_LR, warmup_steps=WARMUP, final_fraction=FINAL), total_steps=STEPS
    )
    optimizer = make_optimizer(
        OptimizerSettings(b1=B1, b2=B2, eps=EPS, weight_decay=DECAY, clip_norm=CLIP),
        schedule=schedule,
        guard=GuardSettings(),
    )
    abstract = abstract_state(pair.config, optimizer=optimizer, mesh=mesh)
    params = jax.tree.map(lambda p, a: jax.device_put(p, a.sharding), pair.params, abstract.params)
    state = start_state(params, abstract=abstract, optimizer=optimizer, seed=0)
    step = make_train_step(
        NextToken(model=pair.config, options=ComputeOptions(), num_chunks=4),
        optimizer=optimizer,
        abstract=abstract,
        num_sources=1,
        accumulation=accumulation,
    )
    losses = []
    for ids in data:
        batch = {
            "tokens": ids[:, :-1].astype(np.int32),
            "targets": ids[:, 1:].astype(np.int32),
            "segment_ids": np.ones((B, T), np.int32),
            "positions": np.broadcast_to(np.arange(T, dtype=np.int32), (B, T)),
            "loss_weights": np.ones((B, T), np.float32),
            "source_ids": np.zeros((B, T), np.int32),
        }
        state, metrics = step(state, jax.device_put(batch, batch_sharding(mesh)))
        losses.append(float(metrics["loss"]))
    padding = np.asarray(state.params["embedding"]["table"][pair.config.vocab_size :])
    assert not padding.any()
    return losses


@pytest.mark.parametrize(
    ("shape", "accumulation"),
    [
        ("gqa_tied", 2),
        pytest.param("llama3_rope", 1, marks=pytest.mark.long),
        pytest.param("odd_vocabulary", 1, marks=pytest.mark.long),
    ],
)
def test_twenty_adamw_steps(tmp_path, shape, accumulation):
    # Weights of the size they start training with: from large ones the first steps are chaotic on both sides.
    pair = make_pair(tmp_path, std=0.02, **SHAPES[shape])
    data = batches(pair.config.vocab_size)
    ours = our_losses(pair, data, accumulation=accumulation)
    theirs = torch_losses(pair.torch_model, data)
    assert theirs[-1] < 0.97 * theirs[0]  # it learns
    np.testing.assert_allclose(ours, theirs, rtol=1e-4)
