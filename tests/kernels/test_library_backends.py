"""Backends that wrap a library: what they refuse on any machine, and tokamax's numbers where it is installed."""

import functools
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh

from kernels.attention import api, cudnn, reference, tokamax_backend
from kernels.attention.cases import CASES
from kernels.attention.dropout import from_key

HAS_TOKAMAX = importlib.util.find_spec("tokamax") is not None
# It is in requirements-aot.txt.
needs_tokamax = pytest.mark.skipif(not HAS_TOKAMAX, reason="tokamax is not installed")
TOKAMAX_CASES = [case for case in CASES if case.name in ("grouped", "ragged", "padded_in_front")]


def _arrays(*, T: int = 16, H: int = 16, dtype=jnp.bfloat16):
    q = jnp.zeros((1, T, 2, H), dtype)
    return q, q, q


def _on_hopper():
    device = jax.sharding.AbstractDevice(device_kind="NVIDIA H100 80GB HBM3", num_cores=132, platform="gpu")
    return jax.sharding.use_abstract_mesh(AbstractMesh((1,), ("x",), abstract_device=device))


@pytest.mark.parametrize(
    ("arguments", "capability", "reason"),
    [
        ({"dtype": jnp.float32}, 9, "bfloat16 or float16"),
        ({"H": 20}, 9, "multiple of 8"),
        ({"H": 256}, 8, "up to 128"),
        ({"H": 264}, 9, "up to 256"),
        ({"T": 15}, 9, "even number"),
    ],
)
def test_cudnn_says_what_it_lacks(arguments, capability, reason):
    refuse = functools.partial(cudnn.refuse_unsupported, dropout=None, dropout_rate=0.0)
    with pytest.raises(NotImplementedError, match=reason):
        refuse(*_arrays(**arguments), capability=capability)
    refuse(*_arrays(), capability=capability)


@pytest.mark.parametrize("backend", [cudnn, pytest.param(tokamax_backend, marks=needs_tokamax)])
def test_library_kernels_are_for_gpus_and_without_dropout(backend):
    ids = jnp.ones((1, 16), jnp.int32)
    with pytest.raises(NotImplementedError, match="needs? an NVIDIA GPU"):
        backend.attention(*_arrays(), segment_ids_BT=ids, scale=1.0)
    dropping = {"dropout_rate": 0.5, "dropout": from_key(jax.random.key(0))}
    call, arrays = functools.partial(backend.attention, segment_ids_BT=ids, scale=1.0, **dropping), _arrays()
    with _on_hopper(), pytest.raises(NotImplementedError, match="dropout"):
        jax.eval_shape(call, *arrays)


@pytest.mark.skipif(HAS_TOKAMAX, reason="tokamax is installed")
def test_tokamax_says_what_to_install():
    q, k, v = _arrays()
    with pytest.raises(NotImplementedError, match="pip install tokamax"):
        api.attention(q, k, v, segment_ids_BT=jnp.ones((1, 16), jnp.int32), backend="tokamax")


@needs_tokamax
@pytest.mark.aot
@pytest.mark.parametrize("case", TOKAMAX_CASES, ids=lambda case: case.name)
def test_tokamax_keeps_the_contract(case):
    """Its kernels need a GPU; its plain XLA one shows that segments, padding and log Z are handed on right."""
    q, k, v = case.arrays()
    ids = jnp.asarray(case.segment_ids_BT())
    weights = np.random.default_rng(1).standard_normal(q.shape, dtype=np.float32)

    def outputs(attention):
        def loss(q, k, v):
            out, log_z = attention(q, k, v, segment_ids_BT=ids, scale=0.3)
            return jnp.sum(out * weights) + jnp.sum(jnp.sin(log_z)), (out, log_z)

        gradients, values = jax.grad(loss, argnums=(0, 1, 2), has_aux=True)(q, k, v)
        return *values, *gradients

    ours = outputs(functools.partial(tokamax_backend.attention, implementation=("xla",)))
    for got, expected in zip(ours, outputs(reference.attention), strict=True):
        np.testing.assert_allclose(got, expected, atol=2e-5)


@needs_tokamax
@pytest.mark.aot
def test_log_z_costs_nothing_where_it_is_not_read():
    case = CASES[0]
    ids = jnp.asarray(case.segment_ids_BT())

    def matmuls(part: int) -> int:
        def loss(q, k, v):
            call = functools.partial(tokamax_backend.attention, implementation=("xla",))
            return jnp.sum(call(q, k, v, segment_ids_BT=ids, scale=0.3)[part])

        return jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(*case.arrays()).compile().as_text().count(" dot(")

    assert matmuls(0) == 5  # two forward; four backward, of which the scores are kept from the forward pass
    assert matmuls(1) > 5
