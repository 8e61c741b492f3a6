"""Low-rank adapters: used beside the weights they are the merged model; new ones change nothing."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_models import SMALL

from allam_jax.errors import UserError
from allam_jax.model.llama import LORA, bind, init_params
from allam_jax.model.llama_config import ComputeOptions
from allam_jax.model.low_rank import abstract_adapters, merged, new_adapters
from allam_jax.model.settings import LORA_TARGETS, LoraSettings

CONFIG = dataclasses.replace(SMALL, init_std=0.2)


@pytest.fixture(scope="module")
def base():
    return jax.jit(lambda: init_params(jax.random.key(0), config=CONFIG))()


def logits(params, *, remat="none"):
    tokens_BT = jnp.arange(40, dtype=jnp.int32).reshape(2, 20) % CONFIG.vocab_size
    places = {"segment_ids_BT": jnp.ones_like(tokens_BT), "positions_BT": jnp.broadcast_to(jnp.arange(20), (2, 20))}

    @jax.jit
    def forward(params):
        options = ComputeOptions(remat=remat)
        return bind(params, config=CONFIG, options=options)(tokens_BT, **places)[..., : CONFIG.vocab_size]

    return np.asarray(forward(params))


def random_adapters(settings):
    adapters = new_adapters(jax.random.key(1), config=CONFIG, settings=settings)
    return jax.tree_util.tree_map_with_path(
        lambda path, x: x if path[-1].key == "factor" else 0.1 * jax.random.normal(jax.random.key(x.size), x.shape),
        adapters,
    )


@pytest.mark.parametrize("remat", ["none", "dots"])
@pytest.mark.parametrize("targets", [LORA_TARGETS, ("query", "down")])
def test_the_merged_model_is_the_base_with_its_adapters(base, targets, remat):
    settings = LoraSettings(rank=3, alpha=5.0, targets=targets)
    params = base | {LORA: random_adapters(settings)}
    beside, inside, without = logits(params, remat=remat), logits(merged(params)), logits(base)
    assert np.abs(beside - without).max() > 0.1
    np.testing.assert_allclose(beside, inside, rtol=0, atol=1e-5 * np.abs(inside).max())


@pytest.mark.parametrize("stabilised", [True, False])
def test_merging_adds_the_product_of_each_layer(base, stabilised):
    settings = LoraSettings(rank=4, alpha=6.0, rank_stabilised=stabilised, targets=("output",))
    params = base | {LORA: random_adapters(settings)}
    after = merged(params)
    assert LORA not in after
    adapter = params[LORA]["layers"]["attention"]["output"]
    for layer in range(CONFIG.num_layers):
        a = np.asarray(adapter["a"][layer], np.float64).reshape(-1, 4)
        b = np.asarray(adapter["b"][layer], np.float64)
        expected = np.asarray(base["layers"]["attention"]["output"][layer], np.float64).reshape(len(a), -1)
        expected = expected + 6.0 / (2.0 if stabilised else 4.0) * a @ b
        found = np.asarray(after["layers"]["attention"]["output"][layer]).reshape(len(a), -1)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(after["layers"]["mlp"]["up"], base["layers"]["mlp"]["up"])


def test_new_adapters_change_no_bit(base):
    settings = LoraSettings(rank=2)
    adapters = new_adapters(jax.random.key(1), config=CONFIG, settings=settings)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), adapters) == jax.tree.map(
        lambda x: (x.shape, x.dtype), abstract_adapters(CONFIG, settings)
    )
    np.testing.assert_array_equal(logits(base | {LORA: adapters}), logits(base))
    np.testing.assert_array_equal(merged(base | {LORA: adapters})["layers"]["mlp"]["up"], base["layers"]["mlp"]["up"])
    assert merged(base) is base
    assert abstract_adapters(CONFIG, LoraSettings()) == {}


def test_a_rank_above_that_of_a_weight_is_refused():
    with pytest.raises(UserError, match=r"config\.lora\.rank = 40: query has only 32 ranks"):
        abstract_adapters(CONFIG, LoraSettings(rank=40))
