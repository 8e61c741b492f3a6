"""The training step on meshes of eight devices against the same step on one device."""

import dataclasses
import functools
import re

import jax
import numpy as np
import pytest

from allam_jax.model.llama import abstract_params, param_axes
from allam_jax.model.llama_config import ComputeOptions, LlamaConfig
from allam_jax.parallel import mesh as mesh_module
from allam_jax.parallel.distributed import global_batch_array
from allam_jax.parallel.mesh import batch_sharding, make_mesh
from allam_jax.parallel.sharding import bytes_per_device, parameter_shardings
from allam_jax.training.objective import NextToken
from allam_jax.training.optimizer import make_optimizer
from allam_jax.training.settings import GuardSettings, OptimizerSettings
from allam_jax.training.state import abstract_state, random_params, start_state
from allam_jax.training.step import make_train_step

CONFIG = LlamaConfig(
    vocab_size=250,
    vocab_multiple=64,
    dim=64,
    num_layers=3,
    num_heads=8,
    num_kv_heads=4,
    head_dim=6,
    mlp_dim=96,
    tie_embeddings=False,
    norm_eps=1e-5,
    rope_theta=10_000.0,
)
B, T = 16, 24
B1 = 0.9
MESHES = [  # sizes, accumulation; the last one cuts over every axis
    pytest.param((8, 1, 1), 1, id="data 8", marks=pytest.mark.long),
    pytest.param((1, 8, 1), 1, id="fsdp 8", marks=pytest.mark.long),
    pytest.param((2, 2, 2), 2, id="2x2x2"),
]


def packed_batch(*, seed=0):
    """Random documents packed into rows, with padding, so that rows carry different numbers of targets."""
    rng = np.random.default_rng(seed)
    segment_ids = np.zeros((B, T), np.int32)
    positions = np.zeros((B, T), np.int32)
    for row in range(B):
        edges = [0, *sorted(rng.choice(np.arange(1, T), size=3, replace=False))]
        for document, (start, stop) in enumerate(zip(edges, edges[1:], strict=False)):
            segment_ids[row, start:stop] = document + 1
            positions[row, start:stop] = np.arange(stop - start)
    return {
        "tokens": rng.integers(0, CONFIG.vocab_size, (B, T), dtype=np.int32),
        "targets": rng.integers(0, CONFIG.vocab_size, (B, T), dtype=np.int32),
        "segment_ids": segment_ids,
        "positions": positions,
        "loss_weights": (segment_ids > 0).astype(np.float32),
        "source_ids": rng.integers(0, 2, (B, T), dtype=np.int32),
    }


@functools.cache
def train(sizes, *, config=CONFIG, options=None, accumulation=1, steps=2):
    """Runs steps from the same seed; gives (state before, state after the first, all metrics)."""
    data, fsdp, tensor = sizes
    mesh = make_mesh({"data": data, "fsdp": fsdp, "tensor": tensor}, devices=jax.devices()[: data * fsdp * tensor])
    # Without clipping the first moment after one step is (1 - b1) times the gradient.
    optimizer = make_optimizer(
        OptimizerSettings(b1=B1, clip_norm=0.0), schedule=lambda step: 1e-3, guard=GuardSettings()
    )
    abstract = abstract_state(config, optimizer=optimizer, mesh=mesh)
    params = random_params(abstract.params, config=config, seed=3)
    start = start_state(params, abstract=abstract, optimizer=optimizer, seed=3)
    before = jax.tree.map(lambda x: x.copy(), start)
    objective = NextToken(model=config, options=options or ComputeOptions(), z_loss=1e-4, num_chunks=2)
    step = make_train_step(objective, optimizer=optimizer, abstract=abstract, num_sources=2, accumulation=accumulation)
    state, metrics, after = start, [], None
    for index in range(steps):
        batch = global_batch_array(packed_batch(seed=index), mesh=mesh, global_batch=B)
        state, values = step(state, batch)
        metrics.append(jax.device_get(values))
        if index == 0:
            after = jax.tree.map(lambda x: x.copy(), state)
    return before, after, metrics


# Each mesh compiles a step of its own, some seconds each.
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def one_device():
    return train((1, 1, 1))


def gradients(state):
    moments = jax.device_get(state.optimizer.mu)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): moment / (1 - B1)
        for path, moment in jax.tree_util.tree_leaves_with_path(moments)
    }


def assert_same_training(actual, expected, *, rtol=1e-5):
    for actual_metrics, expected_metrics in zip(actual[2], expected[2], strict=True):
        assert actual_metrics.keys() == expected_metrics.keys()
        for name in expected_metrics:
            np.testing.assert_allclose(actual_metrics[name], expected_metrics[name], rtol=rtol, err_msg=name)
    actual_gradients, expected_gradients = gradients(actual[1]), gradients(expected[1])
    assert actual_gradients.keys() == expected_gradients.keys()
    for name, expected_gradient in expected_gradients.items():
        error = np.linalg.norm(actual_gradients[name] - expected_gradient) / np.linalg.norm(expected_gradient)
        assert error < rtol, name
        assert np.abs(actual_gradients[name] - expected_gradient).max() < rtol * np.abs(expected_gradient).max(), name


def parameter_bytes(sizes, *, config=CONFIG):
    """Counted by hand: the share of every parameter that fsdp (f) and tensor (t) leave on a device."""
    _, f, t = sizes
    D, L, N, H = config.dim // f, config.num_layers, config.num_heads // t, config.head_dim
    K = config.num_kv_heads // t if config.num_kv_heads % t == 0 else config.num_kv_heads
    V, F = config.padded_vocab_size // t, config.mlp_dim // t
    vectors = (2 * L + 1) * config.dim + L * H * (config.qkv_bias * (N + 2 * K) + config.qk_norm * 2)
    return 4 * (2 * V * D + L * D * (2 * N + 2 * K) * H + L * 3 * D * F + vectors)


def assert_really_sharded(state, sizes, *, config=CONFIG):
    devices = jax.devices()[: np.prod(sizes)]
    expected = parameter_bytes(sizes, config=config)
    adam = state.optimizer
    assert bytes_per_device(state.params) == dict.fromkeys(devices, expected)
    assert bytes_per_device(adam.mu) == dict.fromkeys(devices, expected)
    assert bytes_per_device(adam.nu) == dict.fromkeys(devices, expected)
    # What is left of the state is the guard's window and scalars, whole on every device.
    mirrored = [state.params, adam.mu, adam.nu]
    rest = sum(leaf.nbytes for leaf in jax.tree.leaves(state)) - sum(leaf.nbytes for leaf in jax.tree.leaves(mirrored))
    assert bytes_per_device(state) == dict.fromkeys(devices, 3 * expected + rest)


@pytest.mark.parametrize(("sizes", "accumulation"), MESHES)
def test_same_loss_and_gradients_as_one_device(sizes, accumulation, one_device):
    """Accumulation gives the gradient of the whole batch."""
    result = train(sizes, accumulation=accumulation)
    assert_same_training(result, one_device)
    before, after, _ = result
    assert_really_sharded(before, sizes)
    assert_really_sharded(after, sizes)


@pytest.mark.parametrize(
    ("model_type", "sizes"), [("qwen2", (2, 2, 2)), pytest.param("qwen3", (1, 2, 4), marks=pytest.mark.long)]
)
def test_biases_and_norms_of_heads(model_type, sizes):
    config = dataclasses.replace(CONFIG, model_type=model_type, num_layers=2)
    result = train(sizes, config=config)
    assert_same_training(result, train((1, 1, 1), config=config))
    assert_really_sharded(result[1], sizes, config=config)


@pytest.mark.long
def test_products_of_rounded_operands_are_those_of_one_device(one_device):
    """As far as bfloat16 goes, and nearer to float32 than its rounding times the depth."""
    rounded = ComputeOptions(products="bfloat16")
    alone = train((1, 1, 1), options=rounded, steps=1)
    cut = train((2, 2, 2), options=rounded, steps=1)
    assert alone[2][0]["loss"] != one_device[2][0]["loss"]
    for found, expected in ((cut, alone), (alone, one_device)):
        np.testing.assert_allclose(found[2][0]["loss"], expected[2][0]["loss"], rtol=1e-3)
        of_found, of_expected = gradients(found[1]), gradients(expected[1])
        for name, gradient in of_expected.items():
            assert np.linalg.norm(of_found[name] - gradient) < 0.02 * np.linalg.norm(gradient), name


def test_dropout_rematerialisation_and_fewer_key_value_heads_than_tensor_devices():
    """Dropout draws the same on every mesh; two key/value heads are whole on each of four devices."""
    options = ComputeOptions(dropout_embedding=0.1, dropout_attention=0.1, dropout_residual=0.1, remat="dots")
    config = dataclasses.replace(CONFIG, num_kv_heads=2)
    result = train((2, 1, 4), config=config, options=options)
    assert_same_training(result, train((1, 1, 1), config=config, options=options))
    assert_really_sharded(result[1], (2, 1, 4), config=config)


def test_one_more_axis_of_size_one_changes_no_bit(monkeypatch):
    three = train((2, 2, 2), accumulation=2)
    monkeypatch.setattr(mesh_module, "MESH_AXES", ("data", "fsdp", "sequence", "tensor"))
    four = train.__wrapped__((2, 2, 2), accumulation=2)
    assert four[0].params["head"]["kernel"].sharding.mesh.axis_names == mesh_module.MESH_AXES
    assert_really_sharded(four[1], (2, 2, 2))
    assert jax.tree.structure(three) == jax.tree.structure(four)
    for ours, theirs in zip(jax.tree.leaves(three), jax.tree.leaves(four), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_fsdp_gathers_one_layer_at_a_time():
    """No collective of the compiled gradient makes an array as large as a stack of layers."""
    config = dataclasses.replace(CONFIG, num_layers=5)
    mesh = make_mesh({"data": 1, "fsdp": 8, "tensor": 1})
    abstract = abstract_params(config)
    shardings = parameter_shardings(param_axes(config), abstract_params=abstract, mesh=mesh)
    loss = functools.partial(NextToken(model=config, options=ComputeOptions()).summed_loss, key=jax.random.key(0))
    gradient = jax.jit(jax.grad(loss, has_aux=True), in_shardings=(shardings, batch_sharding(mesh)))
    with jax.set_mesh(mesh):
        text = gradient.lower(abstract, packed_batch()).compile().as_text()
    gathered = [
        tuple(map(int, dimensions.split(","))) for dimensions in re.findall(r"= f32\[([\d,]+)\]\S* all-gather\(", text)
    ]
    D, F = config.dim, config.mlp_dim
    assert (D, F) in gathered
    smallest_stack = config.num_layers * D * config.num_kv_heads * config.head_dim
    tables = {(config.padded_vocab_size, D), (D, config.padded_vocab_size)}
    assert all(np.prod(shape) < smallest_stack for shape in gathered if shape not in tables)
