"""Attention of one token a slot against a cache, against the reference with the same places."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from kernels.attention import decoding, decoding_triton, reference
from kernels.attention.api import Partition
from kernels.attention.contract import Places, Request

L, B, S = 2, 8, 384
LENGTHS = np.array([1, 0, 384, 64, 65, 300, 5, 127], np.int32)
SHAPES = [(6, 2, 16), (4, 4, 32), (8, 1, 64)]


def arrays(N, K, H, dtype=jnp.float32):
    rng = np.random.default_rng(0)
    return tuple(jnp.asarray(rng.standard_normal(s), dtype) for s in ((B, N, H), (L, B, S, K, H), (L, B, S, K, H)))


@jax.jit
def truth(q_BNH, k_LBSKH, v_LBSKH, layer):
    keys = Places(jnp.ones((B, S), jnp.int32), jnp.broadcast_to(jnp.arange(S), (B, S)))
    request = Request(
        segment_ids_BT=jnp.ones((B, 1), jnp.int32),
        positions_BT=jnp.asarray(LENGTHS)[:, None] - 1,
        keys=keys,
        scale=q_BNH.shape[-1] ** -0.5,
    )
    q, k, v = (a.astype(jnp.float32) for a in (q_BNH[:, None], k_LBSKH[layer], v_LBSKH[layer]))
    return reference.attention(q, k, v, request).out_BTNH[:, 0]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_plain_form(shape):
    given = arrays(*shape)
    call = jax.jit(decoding.attend)
    for layer in range(L):
        out = call(*given, layer=jnp.int32(layer), lengths_B=jnp.asarray(LENGTHS))
        np.testing.assert_allclose(out, truth(*given, layer), atol=2e-6)
        np.testing.assert_array_equal(out[LENGTHS == 0], 0.0)


IN_PARTS = [(shape, jnp.float32, 7) for shape in SHAPES] + [(SHAPES[0], jnp.float32, 1), (SHAPES[0], jnp.bfloat16, 3)]
REST = [(shape, dtype, parts) for shape in SHAPES[1:] for dtype, parts in ((jnp.float32, 1), (jnp.bfloat16, 3))]


@pytest.mark.parametrize(
    ("shape", "dtype", "parts"), [*IN_PARTS, *(pytest.param(*one, marks=pytest.mark.long) for one in REST)], ids=str
)
def test_kernel(shape, dtype, parts):
    given = arrays(*shape, dtype=dtype)
    call = functools.partial(decoding_triton.attention, scale=shape[2] ** -0.5, interpret=True, parts=parts)
    out = jax.jit(call)(*given, jnp.int32(1), jnp.asarray(LENGTHS))
    assert out.dtype == dtype
    np.testing.assert_allclose(out, truth(*given, 1), atol=2e-6 if dtype == jnp.float32 else 2e-2)
    np.testing.assert_array_equal(out[LENGTHS == 0], 0.0)


def test_kernel_needs_a_gpu():
    q, k, v = arrays(4, 4, 8)
    with pytest.raises(NotImplementedError, match="need an NVIDIA GPU .* not cpu"):
        decoding.attend(q, k, v, layer=jnp.int32(0), lengths_B=jnp.asarray(LENGTHS), backend="triton")


def test_what_lies_behind_the_lengths_changes_no_bit():
    q, k, v = arrays(6, 2, 16)
    behind = jnp.arange(S)[None, None, :, None, None] >= jnp.asarray(LENGTHS)[None, :, None, None, None]
    run = jax.jit(lambda k, v, lengths: decoding.attend(q, k, v, layer=jnp.int32(0), lengths_B=lengths))
    clean = run(jnp.where(behind, 0, k), jnp.where(behind, 0, v), LENGTHS)
    np.testing.assert_array_equal(clean, run(jnp.where(behind, 1e3, k), jnp.where(behind, -1e3, v), LENGTHS))
    others_end = np.where(np.arange(B) == 6, LENGTHS, 0)  # a short text, alone
    np.testing.assert_array_equal(run(k, v, others_end)[6], clean[6])


def test_on_a_mesh_nothing_is_exchanged():
    given = arrays(8, 4, 16)
    mesh = Mesh(np.array(jax.devices()).reshape(2, 4), ("data", "tensor"))
    with jax.set_mesh(mesh):
        partition = Partition(batch=("data",), heads=("tensor",))
        call = jax.jit(functools.partial(decoding.attend, layer=jnp.int32(1), partition=partition))
        P = jax.sharding.PartitionSpec
        cache = jax.NamedSharding(mesh, P(None, "data", None, "tensor"))
        q = jax.device_put(given[0], jax.NamedSharding(mesh, P("data", "tensor")))
        k, v = (jax.device_put(a, cache) for a in given[1:])
        lengths = jax.device_put(LENGTHS, jax.NamedSharding(mesh, P("data")))
        np.testing.assert_allclose(call(q, k, v, lengths_B=lengths), truth(*given, 1), atol=2e-6)
        text = call.lower(q, k, v, lengths_B=lengths).compile().as_text()
    assert not [kind for kind in ("all-gather", "all-reduce", "all-to-all", "permute") if f" {kind}" in text]


def test_bad_capacity_is_named():
    q, k, v = arrays(4, 4, 8)
    with pytest.raises(ValueError, match="multiple of 64"):
        decoding.attend(q, k[:, :, :100], v[:, :, :100], layer=jnp.int32(0), lengths_B=jnp.asarray(LENGTHS))
