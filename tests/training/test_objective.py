"""An objective of the tests' own in the training step, against its loss and gradient by hand."""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from allam_jax.data.batch import DTYPES
from allam_jax.parallel.distributed import global_batch_array
from allam_jax.parallel.mesh import make_mesh
from allam_jax.training.optimizer import make_optimizer
from allam_jax.training.settings import GuardSettings, OptimizerSettings
from allam_jax.training.state import TrainState, start_state
from allam_jax.training.step import make_train_step

B, T, V, B1 = 8, 6, 11, 0.9


@dataclasses.dataclass(frozen=True)
class ScoreOfRows:
    """Squared error of a row's score, the sum of its tokens' worths, over the rows that have a wanted score."""

    @property
    def batch_dtypes(self) -> Mapping[str, np.dtype]:
        return DTYPES | {"wanted": np.dtype(np.float32)}

    def normaliser(self, batch):
        return jnp.sum(jnp.isfinite(batch["wanted"][:, 0]))

    def summed_loss(self, params, batch, key):
        scores_B = jnp.sum(params["embedding"]["worth_V"][batch["tokens"]] * batch["loss_weights"], axis=1)
        counts_B = jnp.isfinite(batch["wanted"][:, 0])
        errors_B = jnp.where(counts_B, scores_B - jnp.where(counts_B, batch["wanted"][:, 0], 0.0), 0.0)
        drawn = jax.random.uniform(key)
        return jnp.sum(errors_B**2), {"loss": jnp.sum(errors_B**2), "error": jnp.sum(errors_B), "drawn": drawn}


def a_batch():
    rng = np.random.default_rng(0)
    batch = {key: np.zeros((B, T), dtype) for key, dtype in DTYPES.items()}
    batch["tokens"] = rng.integers(0, V, (B, T), dtype=np.int32)
    batch["loss_weights"] = rng.integers(0, 2, (B, T)).astype(np.float32)
    batch["source_ids"] = np.broadcast_to(np.arange(B, dtype=np.int32)[:, None] % 2, (B, T)).copy()
    wanted_B = np.where(np.arange(B) % 3 == 2, np.nan, rng.normal(size=B))
    return batch | {"wanted": np.repeat(wanted_B[:, None], T, axis=1).astype(np.float32)}


def by_hand(worth_V, batch):
    """Mean loss, mean error and the gradient of the mean loss, row by row in float64."""
    loss, error, rows, gradient_V = 0.0, 0.0, 0, np.zeros(V)
    for tokens_T, weights_T, wanted_T in zip(batch["tokens"], batch["loss_weights"], batch["wanted"], strict=True):
        if np.isnan(wanted_T[0]):
            continue
        difference = (
            sum(worth_V[token] * weight for token, weight in zip(tokens_T, weights_T, strict=True)) - wanted_T[0]
        )
        loss, error, rows = loss + difference**2, error + difference, rows + 1
        for token, weight in zip(tokens_T, weights_T, strict=True):
            gradient_V[token] += 2 * difference * weight
    return loss / rows, error / rows, gradient_V / rows


def run_step(worth_V, batch, *, sizes, accumulation):
    data, fsdp, tensor = sizes
    mesh = make_mesh({"data": data, "fsdp": fsdp, "tensor": tensor}, devices=jax.devices()[: data * fsdp * tensor])
    replicated = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    optimizer = make_optimizer(
        OptimizerSettings(b1=B1, clip_norm=0.0, no_decay=()), schedule=lambda step: 0.1, guard=GuardSettings()
    )
    params = {"embedding": {"worth_V": jax.device_put(worth_V, replicated)}}

    def shape(leaf):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=replicated)

    abstract = TrainState(
        step=jax.ShapeDtypeStruct((), jnp.int32, sharding=replicated),
        params=jax.tree.map(shape, params),
        optimizer=jax.tree.map(shape, jax.eval_shape(optimizer.init, params)),
        rng=jax.ShapeDtypeStruct((2,), jnp.uint32, sharding=replicated),
    )
    state = start_state(params, abstract=abstract, optimizer=optimizer, seed=0)
    step = make_train_step(
        ScoreOfRows(), optimizer=optimizer, abstract=abstract, num_sources=2, accumulation=accumulation
    )
    state, metrics = step(state, global_batch_array(batch, mesh=mesh, global_batch=B))
    return jax.device_get(state.optimizer.mu["embedding"]["worth_V"]) / (1 - B1), jax.device_get(metrics)


@pytest.mark.parametrize(("sizes", "accumulation"), [((1, 1, 1), 1), ((1, 1, 1), 4), ((2, 2, 2), 1), ((4, 1, 2), 2)])
def test_sums_are_divided_by_the_normaliser_of_the_whole_step(sizes, accumulation):
    worth_V = np.random.default_rng(1).normal(size=V).astype(np.float32)
    batch = a_batch()
    gradient_V, metrics = run_step(worth_V, batch, sizes=sizes, accumulation=accumulation)
    loss, error, expected_V = by_hand(worth_V.astype(np.float64), batch)
    np.testing.assert_allclose(gradient_V, expected_V, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-6)
    np.testing.assert_allclose(metrics["error"], error, rtol=1e-5)
    np.testing.assert_allclose(metrics["grad_norm"], np.linalg.norm(expected_V), rtol=1e-5)
    # Tokens are counted by weight, whatever the objective divides by.
    assert metrics["tokens"] == np.sum(batch["loss_weights"])
    assert list(metrics["source_tokens"]) == [np.sum(batch["loss_weights"][source::2]) for source in (0, 1)]


def test_each_micro_batch_has_a_key_of_its_own():
    worth_V, batch = np.zeros(V, np.float32), a_batch()
    rows = np.sum(~np.isnan(batch["wanted"][:, 0]))
    stream = jax.random.fold_in(jax.random.key(0), 1)  # of the seed, see start_state
    of_step = jax.random.fold_in(stream, 0)
    for accumulation in (1, 2):
        drawn = [jax.random.uniform(jax.random.fold_in(of_step, index)) for index in range(accumulation)]
        _, metrics = run_step(worth_V, batch, sizes=(1, 1, 1), accumulation=accumulation)
        np.testing.assert_allclose(metrics["drawn"], np.sum(drawn) / rows, rtol=1e-6)


def test_a_batch_without_a_declared_array_is_refused():
    batch = a_batch()
    del batch["wanted"]
    with pytest.raises(ValueError, match="wanted"):
        run_step(np.zeros(V, np.float32), batch, sizes=(1, 1, 1), accumulation=1)
