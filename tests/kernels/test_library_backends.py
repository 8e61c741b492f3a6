"""Backends that wrap a library: what they refuse on any machine. Numbers of tokamax are in tests/aot."""

import dataclasses
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh

from kernels.attention import api, cudnn, tokamax_backend
from kernels.attention.contract import Request
from kernels.attention.dropout import Dropout

HAS_TOKAMAX = importlib.util.find_spec("tokamax") is not None
PLAIN = Request(segment_ids_BT=jnp.ones((1, 16), jnp.int32), scale=1.0)
needs_tokamax = pytest.mark.skipif(not HAS_TOKAMAX, reason="tokamax is not installed")


def _arrays(*, T: int = 16, H: int = 16, dtype=jnp.bfloat16):
    q = jnp.zeros((1, T, 2, H), dtype)
    return q, q, q


def _on_hopper():
    device = jax.sharding.AbstractDevice(device_kind="NVIDIA H100 80GB HBM3", num_cores=132, platform="gpu")
    return jax.sharding.use_abstract_mesh(AbstractMesh((1,), ("x",), abstract_device=device))


@pytest.mark.parametrize(
    ("arguments", "capability", "reason"),
    [
        ({"dtype": jnp.float32}, 9, "float32.*expected the same of bfloat16, float16"),
        ({"H": 20}, 9, "multiple of 8"),
        ({"H": 256}, 8, "up to 128"),
        ({"H": 264}, 9, "up to 256"),
        ({"T": 15}, 9, "even number"),
    ],
)
def test_cudnn_says_what_it_lacks(arguments, capability, reason):
    with pytest.raises(NotImplementedError, match=reason):
        cudnn.refuse_unsupported(*_arrays(**arguments), PLAIN, capability=capability)
    cudnn.refuse_unsupported(*_arrays(), PLAIN, capability=capability)


@pytest.mark.parametrize("backend", [cudnn, pytest.param(tokamax_backend, marks=needs_tokamax)])
def test_library_kernels_are_for_gpus_and_without_dropout(backend):
    arrays = _arrays()  # newer versions of JAX make no arrays while a described GPU stands for the real one
    with pytest.raises(NotImplementedError, match="needs? an NVIDIA GPU"):
        backend.attention(*arrays, PLAIN)
    dropping = dataclasses.replace(PLAIN, dropout=Dropout.from_key(jax.random.key(0), rate=0.5))
    with _on_hopper(), pytest.raises(NotImplementedError, match="dropout"):
        jax.eval_shape(backend.attention, *arrays, dropping)


def test_ranges_of_tokamax_start_where_the_run_of_ids_does():
    ids = np.array([[1, 1, 2, 2, 2, 3, 0, 0], [0, 4, 4, 4, 4, 4, 4, -1]], np.int32)
    expected = [[next(s for s in range(t + 1) if len(set(row[s : t + 1])) == 1) for t in range(8)] for row in ids]
    np.testing.assert_array_equal(tokamax_backend.run_starts_BT(jnp.asarray(ids)), expected)


@pytest.mark.skipif(HAS_TOKAMAX, reason="tokamax is installed")
def test_tokamax_says_what_to_install():
    with pytest.raises(NotImplementedError, match="pip install tokamax"):
        api.attend(*_arrays(), PLAIN, backend="tokamax")
