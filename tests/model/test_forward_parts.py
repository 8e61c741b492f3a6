"""The parts of the forward pass, run one by one, and what they are counted as."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_models import init_jit

from allam_jax.model.llama import abstract_params, bind
from allam_jax.model.llama_config import FAMILIES, ComputeOptions
from allam_jax.model.products import FEW_ROWS, project, turned
from tests import numpy_llama
from tests.small_models import SMALL

TOKENS = np.random.default_rng(0).integers(0, SMALL.vocab_size, 20)
DROPOUT = ComputeOptions(dropout_embedding=0.2, dropout_attention=0.2, dropout_residual=0.2)


@pytest.fixture(scope="module")
def params():
    return init_jit(jax.random.key(0), config=SMALL)


def inputs(*, rows=1):
    tokens_BT = jnp.asarray(np.tile(TOKENS, (rows, 1)))
    places = {"segment_ids_BT": jnp.ones_like(tokens_BT), "positions_BT": jnp.tile(jnp.arange(len(TOKENS)), (rows, 1))}
    return tokens_BT, places


def in_parts(params, *cuts, options, dropout_key=None):
    """Hidden states with the layers run in pieces that end at `cuts`, and the residual stream after each part."""
    model = bind(params, config=SMALL, options=options)
    tokens_BT, places = inputs()
    streams = [model.embed(tokens_BT, dropout_key=dropout_key)]
    for start, stop in zip((0, *cuts), (*cuts, SMALL.num_layers), strict=True):
        layers = slice(start, stop)
        streams.append(model.apply_layers(streams[-1], **places, dropout_key=dropout_key, layers=layers)[0])
    return model.finish(streams[-1]), streams


@pytest.mark.parametrize("cuts", [(), (1,), (1, 2), (0, 3)], ids=str)
def test_parts_make_the_logits_of_a_llama(params, cuts):
    hidden_BTD, streams = in_parts(params, *cuts, options=ComputeOptions(scan_unroll=2))
    np.testing.assert_array_equal(streams[0][0], params["embedding"]["table"][TOKENS])
    expected_TV = numpy_llama.logits(params, TOKENS, config=SMALL)
    logits_TV = np.asarray(hidden_BTD[0] @ params["head"]["kernel"])[:, : SMALL.vocab_size]
    np.testing.assert_allclose(logits_TV, expected_TV, rtol=0, atol=1e-5 * np.abs(expected_TV).max())


def test_a_layer_does_what_it_does_in_the_stack(params):
    """Layer 1 alone, given what layer 0 left, leaves what a network of two layers leaves."""
    _, streams = in_parts(params, 1, 2, options=ComputeOptions())
    _, two = in_parts(params, 2, options=ComputeOptions())
    assert not np.allclose(streams[1], streams[2], rtol=0.01)
    np.testing.assert_allclose(streams[2], two[1], rtol=1e-5, atol=1e-7)


def test_parts_drop_what_the_whole_pass_drops(params):
    tokens_BT, places = inputs()
    whole = bind(params, config=SMALL, options=DROPOUT)
    keys = jax.random.split(jax.random.key(5))
    first, second = (whole.hidden(tokens_BT, **places, dropout_key=key) for key in keys)
    assert not np.allclose(first, second, rtol=0.01)
    for cuts in ((), (1,), (1, 2)):
        parts, _ = in_parts(params, *cuts, options=DROPOUT, dropout_key=keys[0])
        np.testing.assert_allclose(parts, first, rtol=1e-5, atol=1e-6)


def test_layers_draw_different_masks(params):
    """With equal parameters in all layers, two layers in a row differ from the first one run twice."""
    same = params | {"layers": jax.tree.map(lambda w: jnp.broadcast_to(w[:1], w.shape), params["layers"])}
    model = bind(same, config=SMALL, options=DROPOUT)
    _, places = inputs()
    key = jax.random.key(1)
    x_BTD = jax.random.normal(jax.random.key(2), (1, len(TOKENS), SMALL.dim))
    first, second = (
        model.apply_layers(x_BTD, **places, dropout_key=key, layers=slice(index, index + 1))[0] for index in (0, 1)
    )
    assert not np.allclose(first, second, rtol=0.01)
    without = [model.apply_layers(x_BTD, **places, layers=slice(index, index + 1))[0] for index in (0, 1)]
    np.testing.assert_array_equal(*without)


@pytest.mark.parametrize("model_type", FAMILIES)
@pytest.mark.parametrize("tied", [False, True])
def test_parameters_and_operations_are_counted(model_type, tied):
    config = dataclasses.replace(SMALL, model_type=model_type, tie_embeddings=tied, vocab_multiple=1)
    leaves = jax.tree.leaves(abstract_params(config))
    assert config.num_parameters == sum(math.prod(leaf.shape) for leaf in leaves)
    # Two operations for each element of a matrix, forward, and twice that backward; the embedding is looked up.
    layers = abstract_params(config)["layers"]
    matrices = [layers["attention"][name] for name in ("query", "key", "value", "output")]
    matrices += [layers["mlp"][name] for name in ("gate", "up", "down")]
    elements = sum(math.prod(leaf.shape) for leaf in matrices) + config.vocab_size * config.dim
    attention = (
        2 * 2 * 3 * config.num_layers * config.num_heads * config.head_dim * 100 / 2
    )  # scores and values; causal
    assert config.flops_per_token(100) == 6 * elements + attention


@pytest.mark.parametrize("rows", [1, FEW_ROWS, FEW_ROWS + 1])
@pytest.mark.parametrize(("shape", "inputs"), [((24, 3, 8), 1), ((3, 8, 24), 2)], ids=str)
def test_turned_weights_give_the_same_products(rows, shape, inputs):
    rng = np.random.default_rng(0)
    x, weight = rng.standard_normal((1, rows, *shape[:inputs])), rng.standard_normal(shape)
    product = jax.jit(lambda x, weight: project(x, turned(weight, inputs)))
    found = product(jnp.asarray(x, jnp.float32), jnp.asarray(weight, jnp.float32))
    np.testing.assert_allclose(found, np.tensordot(x, weight, inputs), atol=1e-4)
