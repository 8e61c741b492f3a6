"""Products of rounded operands, against float64."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from allam_jax.model.products import product, project

M, K, N = 48, 40, 24


def rounded(x):
    return np.asarray(x).astype(ml_dtypes.bfloat16).astype(np.float64)


@pytest.fixture(scope="module")
def operands():
    rng = np.random.default_rng(0)
    return [rng.normal(size=shape).astype(np.float32) for shape in ((M, K), (K, N), (M, N))]


@pytest.mark.parametrize("transposed", [False, True])
def test_sums_of_bfloat16_are_float32(operands, transposed):
    a_MK, b_KN = (jnp.asarray(x, jnp.bfloat16) for x in operands[:2])
    b_KN = jnp.asarray(b_KN.T).T if transposed else b_KN
    found_MN = jax.jit(product, static_argnames="dtype")(a_MK, b_KN, dtype=jnp.float32)
    assert found_MN.dtype == jnp.float32
    np.testing.assert_allclose(found_MN, rounded(operands[0]) @ rounded(operands[1]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rows", [(M,), (6, 8)], ids=["a row each", "rows of a batch"])
def test_products_and_gradients_are_those_of_rounded_operands(operands, rows):
    a, b, d = operands
    x, d = a.reshape(*rows[:1], -1, K), d.reshape(*rows[:1], -1, N)
    found, gradients = jax.jit(lambda x, b: jax.vjp(lambda x, b: project(x, b, operands="bfloat16"), x, b))(x, b)
    d_x, d_b = gradients(d)
    close = {"rtol": 1e-5, "atol": 1e-5}
    np.testing.assert_allclose(found.reshape(M, N), rounded(a) @ rounded(b), **close)
    np.testing.assert_allclose(d_x.reshape(M, K), rounded(d).reshape(M, N) @ rounded(b).T, **close)
    np.testing.assert_allclose(d_b, rounded(a).T @ rounded(d).reshape(M, N), **close)
    assert np.abs(found.reshape(M, N) - a @ b).max() > 1e-3  # rounding was not left out


def test_a_mesh_gives_the_same_product(operands):
    mesh = jax.make_mesh((4, 2), ("rows", "columns"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    x = jax.device_put(operands[0].reshape(8, -1, K), NamedSharding(mesh, PartitionSpec("rows")))
    b_KN = jax.device_put(operands[1], NamedSharding(mesh, PartitionSpec(None, "columns")))
    with jax.set_mesh(mesh):
        found = jax.jit(lambda x, b: project(x, b, operands="bfloat16"))(x, b_KN)
    assert len(found.sharding.device_set) == 8
    expected_MN = rounded(operands[0]) @ rounded(operands[1])
    np.testing.assert_allclose(np.asarray(found).reshape(M, N), expected_MN, rtol=1e-5, atol=1e-5)
