"""What is trained, and that the rest keeps every bit and has no moments."""

import functools

import jax
import numpy as np
import pytest
from small_models import SMALL

from allam_jax.errors import UserError
from allam_jax.model.llama import LORA
from allam_jax.model.llama_config import ComputeOptions
from allam_jax.model.low_rank import abstract_adapters
from allam_jax.model.settings import LoraSettings
from allam_jax.parallel.distributed import global_batch_array
from allam_jax.parallel.mesh import make_mesh
from allam_jax.parallel.sharding import path_name
from allam_jax.training.objective import NextToken
from allam_jax.training.optimizer import make_optimizer
from allam_jax.training.settings import GuardSettings, OptimizerSettings
from allam_jax.training.state import abstract_state, random_params, start_state, with_new_adapters
from allam_jax.training.step import make_train_step
from allam_jax.training.trainable import Trainable

B, T, B1 = 8, 16, 0.9


def batch():
    rng = np.random.default_rng(0)
    ids = rng.integers(0, SMALL.vocab_size, (B, T + 1)).astype(np.int32)
    return {
        "tokens": ids[:, :-1],
        "targets": ids[:, 1:],
        "segment_ids": np.ones((B, T), np.int32),
        "positions": np.broadcast_to(np.arange(T, dtype=np.int32), (B, T)),
        "loss_weights": np.ones((B, T), np.float32),
        "source_ids": np.zeros((B, T), np.int32),
    }


@functools.cache
def one_step(trainable=Trainable(), lora=LoraSettings(), sizes=(1, 1, 1), steps=1):  # noqa: B008 (frozen)
    """The state before and after some steps, as arrays by name; the moments of the first update by name."""
    mesh = make_mesh(dict(zip(("data", "fsdp", "tensor"), sizes, strict=True)), devices=jax.devices()[: np.prod(sizes)])
    settings = OptimizerSettings(b1=B1, clip_norm=0.0)
    optimizer = make_optimizer(settings, schedule=lambda step: 0.01, guard=GuardSettings())
    abstract = abstract_state(SMALL, optimizer=optimizer, mesh=mesh, lora=lora, trainable=trainable)
    own = {name: value for name, value in abstract.params.items() if name != LORA}
    params = random_params(own, config=SMALL, seed=0)
    params = with_new_adapters(params, abstract.params, config=SMALL, settings=lora, seed=0)
    state = start_state(params, abstract=abstract, optimizer=optimizer, seed=0, trainable=trainable)
    before = by_name(state.params)
    step = make_train_step(
        NextToken(model=SMALL, options=ComputeOptions()),
        optimizer=optimizer,
        abstract=abstract,
        num_sources=1,
        trainable=trainable,
    )
    losses = []
    for _ in range(steps):
        state, metrics = step(state, global_batch_array(batch(), mesh=mesh, global_batch=B))
        losses.append(float(metrics["loss"]))
    return before, by_name(state.params), by_name(state.optimizer.mu), losses


def by_name(tree):
    return {path_name(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def changed(before, after):
    return {name for name in before if before[name].tobytes() != after[name].tobytes()}


def test_only_new_rows_are_trained_and_with_the_gradient_that_all_would_have():
    _, _, whole, _ = one_step()
    before, after, moments, _ = one_step(Trainable(("embedding", "head"), 100))
    assert changed(before, after) == {"embedding/table", "head/kernel"}
    assert {name: moment.shape for name, moment in moments.items()} == {
        "embedding/table": (28, 32),
        "head/kernel": (32, 28),
    }
    np.testing.assert_allclose(moments["embedding/table"], whole["embedding/table"][100:], rtol=1e-5, atol=1e-9)
    np.testing.assert_allclose(moments["head/kernel"], whole["head/kernel"][:, 100:], rtol=1e-5, atol=1e-9)
    assert after["embedding/table"][:100].tobytes() == before["embedding/table"][:100].tobytes()
    assert after["head/kernel"][:, :100].tobytes() == before["head/kernel"][:, :100].tobytes()
    assert not after["embedding/table"][SMALL.vocab_size :].any()


def test_parameters_are_chosen_by_name():
    before, after, moments, _ = one_step(Trainable(("mlp",)))
    assert changed(before, after) == set(moments) == {"layers/mlp/gate", "layers/mlp/up", "layers/mlp/down"}


@pytest.mark.parametrize("sizes", [(1, 1, 1), (2, 2, 2)])
def test_adapters_are_trained_and_the_weights_are_not(sizes):
    lora = LoraSettings(rank=2, targets=("query", "output", "up"))
    before, after, moments, losses = one_step(Trainable(("head",), 0), lora, sizes, 4)
    adapters = {
        f"lora/{path_name(path)}"
        for path, _ in jax.tree_util.tree_leaves_with_path(abstract_adapters(SMALL, lora))
        if path[-1].key != "factor"
    }
    assert set(moments) == changed(before, after) == adapters | {"head/kernel"}
    assert losses[-1] < losses[0]
    expected = one_step(Trainable(("head",), 0), lora, (1, 1, 1), 4)[3]
    np.testing.assert_allclose(losses, expected, rtol=1e-5)


def test_rows_that_a_mesh_does_not_divide_give_the_same_step():
    one, many = (one_step(Trainable(("embedding",), 101), LoraSettings(), sizes) for sizes in ((1, 1, 1), (2, 2, 2)))
    assert one[2]["embedding/table"].shape == (27, 32)
    np.testing.assert_allclose(many[2]["embedding/table"], one[2]["embedding/table"], rtol=1e-4, atol=1e-8)


def test_names_and_rows_that_there_are_not_are_refused():
    with pytest.raises(UserError, match="no parameter is called 'embeding'; did you mean embedding"):
        one_step(Trainable(("embeding",)))
    with pytest.raises(UserError, match=r"rows_from = 200: the model has only 128 rows"):
        one_step(Trainable((), 200))
