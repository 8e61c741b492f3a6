"""Vocabulary expansion against a loop over tokens in numpy and float64, and against the statistics it promises."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from allam_jax.errors import UserError
from allam_jax.model import expansion
from allam_jax.model.llama import abstract_params
from allam_jax.model.llama_config import LlamaConfig
from allam_jax.model.settings import METHODS, ExpandSettings
from allam_jax.parallel.mesh import make_mesh
from allam_jax.tokenizer.provenance import ExpansionPlan
from allam_jax.weights.directory import shardings_on

OLD, NEW, DIM = 90, 700, 24  # more rows than are handled at a time
CONFIG = LlamaConfig(
    vocab_size=OLD,
    vocab_multiple=32,
    dim=DIM,
    num_layers=1,
    num_heads=2,
    num_kv_heads=1,
    head_dim=12,
    mlp_dim=8,
    tie_embeddings=False,
    norm_eps=1e-5,
    rope_theta=10_000.0,
)


def expand(params, *, config, plan, seed=0, **settings):
    return expansion.expand(params, config=config, plan=plan, settings=ExpandSettings(**settings), seed=seed)


def random_plan(*, longest: int = 11) -> ExpansionPlan:
    """Old tokens are strewn over the new vocabulary; one old token is dropped, one new one has no pieces."""
    rng = np.random.default_rng(0)
    places = rng.permutation(NEW)
    kept = np.stack([places[: OLD - 1], rng.permutation(OLD)[: OLD - 1]], axis=1).astype(np.int64)
    added = {int(i): rng.integers(0, OLD, rng.integers(1, longest + 1)).tolist() for i in places[OLD - 1 :]}
    special = {index: added.pop(index) for index in list(added)[:5]}
    special[next(iter(special))] = []
    return ExpansionPlan(OLD, NEW, kept, added, special)


def random_params(config: LlamaConfig, *, dtype: str = "float32"):
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda s: rng.standard_normal(s.shape) + 0.5, abstract_params(config))
    params["embedding"]["table"][config.vocab_size :] = 0
    if not config.tie_embeddings:
        params["head"]["kernel"][:, config.vocab_size :] = 0
    return jax.tree.map(lambda p: jnp.asarray(p, jnp.dtype(dtype)), params)


def rows_by_hand(table, plan: ExpansionPlan, method: str) -> np.ndarray:
    """New rows one after the other; the methods that draw nothing."""
    table = np.asarray(table, np.float64)[:OLD]
    rows = np.zeros((plan.merged_size, table.shape[1]))
    for merged_id, base_id in plan.kept:
        rows[merged_id] = table[base_id]
    for index, pieces in (plan.new | plan.special).items():
        if not pieces:
            rows[index] = table.mean(axis=0)
        elif method == "subword_mean":
            rows[index] = sum(table[piece] for piece in pieces) / len(pieces)
        else:
            rows[index] = table[pieces[0 if method == "first_piece" else -1]]
    return rows


def added_rows(table, plan: ExpansionPlan) -> np.ndarray:
    return np.asarray(table, np.float64)[sorted(plan.new)]


@pytest.mark.parametrize(
    ("method", "head_method"),
    [
        ("subword_mean", ""),
        ("first_piece", "last_piece"),
        ("last_piece", "subword_mean"),
        ("subword_mean", "first_piece"),
    ],
)
def test_methods_that_draw_nothing(method, head_method):
    plan, params = random_plan(), random_params(CONFIG)
    expanded, config = expand(params, config=CONFIG, plan=plan, method=method, head_method=head_method)
    assert config == dataclasses.replace(CONFIG, vocab_size=NEW)
    assert expanded["embedding"]["table"].shape == (704, DIM)
    assert expanded["head"]["kernel"].shape == (DIM, 704)
    table, head = np.asarray(expanded["embedding"]["table"]), np.asarray(expanded["head"]["kernel"]).T
    np.testing.assert_allclose(
        table[:NEW], rows_by_hand(params["embedding"]["table"], plan, method), rtol=2e-6, atol=1e-6
    )
    expected = rows_by_hand(params["head"]["kernel"].T, plan, head_method or method)
    np.testing.assert_allclose(head[:NEW], expected, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("method", "dtype"), [*((method, "float32") for method in METHODS), ("mean_noise", "bfloat16")]
)
def test_old_rows_are_copied_bitwise_and_padding_is_zero(method, dtype):
    plan, params = random_plan(), random_params(CONFIG, dtype=dtype)
    params["embedding"]["table"] = params["embedding"]["table"].at[:, 0].set(-0.0)
    expanded, _ = expand(params, config=CONFIG, plan=plan, method=method)
    for old, new in (
        (params["embedding"]["table"], expanded["embedding"]["table"]),
        (params["head"]["kernel"].T, expanded["head"]["kernel"].T),
    ):
        old, new = np.asarray(old), np.asarray(new)
        assert new.dtype == old.dtype
        assert new[plan.kept[:, 0]].tobytes() == old[plan.kept[:, 1]].tobytes()
        assert not new[NEW:].any()
        assert np.isfinite(new.astype(np.float32)).all()
        added = new[sorted(plan.new)].astype(np.float32)
        assert (np.abs(added).max(axis=1) > 0).all()
    assert expanded["layers"] is params["layers"]
    assert expanded["final_norm"] is params["final_norm"]


def test_bfloat16_means_are_summed_in_float32():
    plan, params = random_plan(longest=200), random_params(CONFIG, dtype="bfloat16")
    expanded, _ = expand(params, config=CONFIG, plan=plan)
    expected = rows_by_hand(params["embedding"]["table"], plan, "subword_mean")
    error = np.abs(np.asarray(expanded["embedding"]["table"][:NEW], np.float64) - expected)
    assert (error <= np.abs(expected) * 2**-8 + 1e-6).all()  # only the last rounding


def test_random_rows():
    plan = random_plan()
    expanded, _ = expand(
        random_params(CONFIG), config=dataclasses.replace(CONFIG, init_std=0.3), plan=plan, method="random"
    )
    table = added_rows(expanded["embedding"]["table"], plan)
    head = added_rows(expanded["head"]["kernel"].T, plan)
    count = table.size
    for drawn in (table, head):
        assert abs(drawn.mean()) < 5 * 0.3 / np.sqrt(count)
        assert abs(drawn.std() / 0.3 - 1) < 5 / np.sqrt(2 * count)
        assert len({row.tobytes() for row in drawn}) == len(drawn)  # all rows are drawn apart
    assert abs(np.corrcoef(table.ravel(), head.ravel())[0, 1]) < 5 / np.sqrt(count)


def test_mean_all_has_the_mean_and_the_covariance_of_the_old_rows():
    config = dataclasses.replace(CONFIG, dim=6, head_dim=4)
    rng = np.random.default_rng(5)
    mixing = rng.standard_normal((6, 6))
    old = rng.standard_normal((OLD, 6)) @ mixing + 3.0
    params = random_params(config)
    params["embedding"]["table"] = params["embedding"]["table"].at[:OLD].set(old)
    places = np.arange(OLD, dtype=np.int64)
    size = 20_000
    plan = ExpansionPlan(OLD, size, np.stack([places, places], axis=1), {i: [0] for i in range(OLD, size)}, {})
    expanded, _ = expand(params, config=config, plan=plan, method="mean_all", covariance_scale=1.0)
    drawn = np.asarray(expanded["embedding"]["table"][OLD:size], np.float64)
    covariance = np.cov(old.T, bias=True)
    tolerance = 6 * np.sqrt(np.outer(np.diag(covariance), np.diag(covariance)) * 2 / size)
    assert (np.abs(drawn.mean(axis=0) - old.mean(axis=0)) < 6 * np.sqrt(np.diag(covariance) / size)).all()
    assert (np.abs(np.cov(drawn.T) - covariance) < tolerance).all()
    # As Hugging Face draws them by default: the mean, but for a little.
    expanded, _ = expand(params, config=config, plan=plan, method="mean_all")
    drawn = np.asarray(expanded["embedding"]["table"][OLD:size], np.float64)
    spread = np.abs(drawn - old.mean(axis=0)) / np.sqrt(np.diag(covariance))
    assert 0 < spread.max() < 6 * np.sqrt(1e-9) + 1e-6


def test_mean_noise_is_the_mean_and_noise():
    plan, params = random_plan(), random_params(CONFIG)
    noisy, _ = expand(params, config=CONFIG, plan=plan, method="mean_noise", noise_std=0.05)
    plain, _ = expand(params, config=CONFIG, plan=plan, method="subword_mean")
    noise = added_rows(noisy["embedding"]["table"], plan) - added_rows(plain["embedding"]["table"], plan)
    old = np.asarray(params["embedding"]["table"][:OLD], np.float64)
    std = 0.05 * (old - old.mean(axis=0)).std()
    assert abs(noise.mean()) < 5 * std / np.sqrt(noise.size)
    assert abs(noise.std() / std - 1) < 5 / np.sqrt(2 * noise.size)


@pytest.mark.parametrize("method", ["subword_mean", "mean_all", "random"])
def test_a_mesh_changes_nothing_and_keeps_its_layout(method):
    plan, params = random_plan(), random_params(CONFIG)
    expected, _ = expand(params, config=CONFIG, plan=plan, method=method, seed=3, covariance_scale=1.0)
    mesh = make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    sharded = jax.device_put(params, shardings_on(CONFIG, mesh=mesh))
    found, config = expand(sharded, config=CONFIG, plan=plan, method=method, seed=3, covariance_scale=1.0)
    wanted = shardings_on(config, mesh=mesh)
    for name, leaf in (("embedding", "table"), ("head", "kernel")):
        assert found[name][leaf].sharding.is_equivalent_to(wanted[name][leaf], 2)
        np.testing.assert_allclose(found[name][leaf], expected[name][leaf], rtol=1e-5, atol=1e-5)


def test_seeds():
    plan, params = random_plan(), random_params(CONFIG)
    first, again, other = (
        np.asarray(expand(params, config=CONFIG, plan=plan, method="random", seed=seed)[0]["head"]["kernel"])
        for seed in (0, 0, 1)
    )
    assert first.tobytes() == again.tobytes()
    assert not np.array_equal(first, other)


def test_tied_tables():
    config = dataclasses.replace(CONFIG, tie_embeddings=True)
    expanded, new_config = expand(random_params(config), config=config, plan=random_plan())
    assert "head" not in expanded
    assert jax.tree.map(jnp.shape, expanded) == jax.tree.map(lambda s: s.shape, abstract_params(new_config))
    with pytest.raises(UserError, match="tied"):
        expand(random_params(config), config=config, plan=random_plan(), head_method="random")


def test_errors():
    params, plan = random_params(CONFIG), random_plan()
    with pytest.raises(UserError, match="has 91 tokens, but the weights to expand have 90"):
        expand(params, config=CONFIG, plan=dataclasses.replace(plan, base_size=91))
