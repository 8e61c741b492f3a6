"""The contract of the backend `tokamax`, with the package of requirements-aot.txt."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels.attention import reference, tokamax_backend
from kernels.attention.contract import Request
from kernels.workshop.cases import CASES

CASES_TO_SHOW = [case for case in CASES if case.name in ("grouped", "padded_in_front")]
CASES_TO_SHOW += [pytest.param(case, marks=pytest.mark.long) for case in CASES if case.name == "ragged"]


@pytest.mark.long
@pytest.mark.parametrize("case", CASES_TO_SHOW, ids=lambda case: case.name)
def test_tokamax_keeps_the_contract(case):
    """Its kernels need a GPU; its plain XLA one shows that segments, padding and log Z are handed on right."""
    q, k, v = case.arrays()
    request = Request(segment_ids_BT=jnp.asarray(case.segment_ids_BT()), scale=0.3)
    weights = np.random.default_rng(1).standard_normal(q.shape, dtype=np.float32)

    def outputs(attention):
        def loss(q, k, v):
            out, log_z = attention(q, k, v, request)
            return jnp.sum(out * weights) + jnp.sum(jnp.sin(log_z)), (out, log_z)

        gradients, values = jax.grad(loss, argnums=(0, 1, 2), has_aux=True)(q, k, v)
        return *values, *gradients

    ours = outputs(functools.partial(tokamax_backend.attention, implementations=("xla",)))
    for got, expected in zip(ours, outputs(reference.attention), strict=True):
        np.testing.assert_allclose(got, expected, atol=2e-5)


def test_log_z_costs_nothing_where_it_is_not_read():
    case = CASES_TO_SHOW[0]

    def matmuls(part: int) -> int:
        def loss(q, k, v):
            call = functools.partial(tokamax_backend.attention, implementations=("xla",))
            return jnp.sum(call(q, k, v, case.request())[part])

        return jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(*case.arrays()).compile().as_text().count(" dot(")

    assert matmuls(0) == 5  # two forward; four backward, of which the scores are kept from the forward pass
    assert matmuls(1) > 5
