"""Keys with places of their own, against a softmax for each query in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from kernels.attention import reference, triton, xla_chunked
from kernels.attention.api import Partition, attend
from kernels.attention.contract import Places, Request

B, T, S, N, K, H = 2, 150, 210, 4, 2, 16
BACKENDS = pytest.mark.parametrize("serve", [reference.attention, xla_chunked.attention], ids=["xla", "xla_chunked"])


@functools.cache
def made():
    """q, k, v, places of queries and of keys: in no order, some of padding, some queries without any key."""
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((B, n, h, H)).astype(np.float32) for n, h in ((T, N), (S, K), (S, K)))
    queries = Places(rng.integers(0, 5, (B, T)), rng.integers(0, 90, (B, T)))
    keys = Places(rng.integers(0, 4, (B, S)), rng.integers(30, 90, (B, S)))
    return (q, k, v), queries, keys


def request() -> Request:
    _, queries, keys = jax.tree.map(jnp.asarray, made())
    return Request(segment_ids_BT=queries.segment_ids, positions_BT=queries.positions, keys=keys, scale=0.3)


def by_hand():
    (q, k, v), queries, keys = made()
    out, log_z, blind = np.zeros(q.shape), np.zeros((B, N, T)), 0
    for b, t in np.ndindex(B, T):
        document, position = queries.segment_ids[b, t], queries.positions[b, t]
        seen = [s for s in range(S) if keys.segment_ids[b, s] == document != 0 and keys.positions[b, s] <= position]
        blind += not seen and document != 0
        for n in range(N if seen else 0):
            scores = 0.3 * k[b, seen, n // 2].astype(np.float64) @ q[b, t, n]
            log_z[b, n, t] = scores.max() + np.log(np.exp(scores - scores.max()).sum())
            out[b, t, n] = np.exp(scores - log_z[b, n, t]) @ v[b, seen, n // 2]
    assert blind > 10
    return out, log_z


@BACKENDS
def test_visibility_follows_from_places(serve):
    output = jax.jit(serve)(*made()[0], request())
    for actual, expected in zip(output, by_hand(), strict=True):
        np.testing.assert_allclose(actual, expected, atol=1e-5)


def test_on_a_mesh():
    mesh = Mesh(np.array(jax.devices()[:4]).reshape(2, 2), ("data", "tensor"))
    with jax.set_mesh(mesh):
        call = functools.partial(attend, partition=Partition(batch=("data",), heads=("tensor",)))
        np.testing.assert_allclose(jax.jit(call)(*made()[0], request()).out_BTNH, by_hand()[0], atol=1e-5)


def test_gradients_are_those_of_the_reference():
    def gradients(serve):
        total = lambda q, k, v: sum(jnp.sum(jnp.sin(a)) for a in serve(q, k, v, request()))  # noqa: E731
        return jax.jit(jax.grad(total, argnums=(0, 1, 2)))(*made()[0])

    for ours, theirs in zip(gradients(xla_chunked.attention), gradients(reference.attention), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-5)


@BACKENDS
def test_places_in_order_are_the_plain_request(serve):
    (q, k, v), _, _ = made()
    ids = jnp.asarray(np.repeat([[1, 2, 0], [1, 1, 2]], 50, axis=1), jnp.int32)
    rows = Places(ids, jnp.broadcast_to(jnp.arange(T), ids.shape))
    call = jax.jit(serve)
    plain = call(q, k[:, :T], v[:, :T], Request(segment_ids_BT=ids, scale=0.3))
    placed = Request(segment_ids_BT=ids, positions_BT=rows.positions, keys=rows, scale=0.3)
    for a, b in zip(call(q, k[:, :T], v[:, :T], placed), plain, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_what_cannot_be_served_is_said():
    with pytest.raises(NotImplementedError, match="keys at other places"):
        triton.attention(*made()[0], request(), interpret=True)
    ids = request().segment_ids_BT
    with pytest.raises(ValueError, match="places of keys need positions"):
        attend(*made()[0], Request(segment_ids_BT=ids, positions_BT=ids, scale=1.0))
    short = request().keys._replace(positions=request().keys.positions[:, 1:])
    with pytest.raises(ValueError, match=r"key positions \(2, 209\)"):
        attend(*made()[0], Request(segment_ids_BT=ids, positions_BT=ids, keys=short, scale=1.0))
