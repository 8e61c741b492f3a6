import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels.attention import reference, xla_chunked
from kernels.attention.api import BACKENDS, attention, attention_and_log_z
from kernels.attention.cases import CASES, Case
from kernels.attention.dropout import from_key
from kernels.attention.reference import AttentionOutput
from tests.kernels.attention_truth import Truth, cotangents, in_float64, relative_error

NAMED = [name for name in BACKENDS if name != "auto"]
CASE = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
BACKEND = pytest.mark.parametrize("backend", NAMED)
PACKED = next(case for case in CASES if case.name == "packed")
DROPPING = next(case for case in CASES if case.name == "dropping")


def with_gradients(case: Case, arrays, cotangents, *, backend: str, key=None) -> Truth:
    call = functools.partial(
        attention_and_log_z,
        segment_ids_BT=jnp.asarray(case.segment_ids_BT()),
        backend=backend,
        dropout_rate=case.dropout_rate,
        dropout_key=key,
    )

    @jax.jit
    def run(arrays, cotangents):
        output, gradient = jax.vjp(call, *arrays)
        return *output, *gradient(AttentionOutput(*cotangents))

    return Truth(*run(arrays, cotangents))


@CASE
@BACKEND
def test_float32_against_float64(case, backend):
    arrays, (d_out, d_log_z) = case.arrays(), cotangents(case)
    key = jax.random.key(5) if case.dropout_rate else None
    actual = with_gradients(case, arrays, (d_out, d_log_z), backend=backend, key=key)
    dropout = from_key(key) if case.dropout_rate else None
    truth = in_float64(case, arrays, d_out, d_log_z=d_log_z, dropout=dropout)
    for name, a, e in zip(Truth._fields, actual, truth, strict=True):
        assert a.dtype == jnp.float32
        assert relative_error(a, e) <= 1e-5, name


@BACKEND
def test_bfloat16_against_float64(backend):
    arrays, (d_out, d_log_z) = PACKED.arrays(dtype=jnp.bfloat16), cotangents(PACKED, jnp.bfloat16)
    actual = with_gradients(PACKED, arrays, (d_out, d_log_z), backend=backend)
    truth = in_float64(PACKED, arrays, d_out, d_log_z=d_log_z)
    for name, a, e in zip(Truth._fields, actual, truth, strict=True):
        assert a.dtype == (jnp.float32 if name == "log_z" else jnp.bfloat16)
        assert relative_error(a, e) <= 2e-2, name


@BACKEND
def test_padding_gives_zeros_and_takes_nothing(backend):
    case = next(case for case in CASES if case.name == "padded_in_front")
    padding = case.segment_ids_BT() == 0
    assert padding.any()
    results = with_gradients(case, case.arrays(), cotangents(case), backend=backend)
    results = results._replace(log_z=jnp.swapaxes(results.log_z, 1, 2))
    for a in results:
        np.testing.assert_array_equal(np.asarray(a)[padding], 0.0)
        assert np.all(np.isfinite(a))


@BACKEND
def test_packed_equals_apart(backend):
    q, k, v = PACKED.arrays()
    ids = PACKED.segment_ids_BT()
    call = jax.jit(functools.partial(attention, backend=backend))
    packed = call(q, k, v, segment_ids_BT=jnp.asarray(ids))
    for b in range(PACKED.batch):
        for document in range(1, ids[b].max() + 1):
            (where,) = np.nonzero(ids[b] == document)
            apart = [a[b : b + 1, where] for a in (q, k, v)]
            alone = call(*apart, segment_ids_BT=jnp.ones((1, len(where)), jnp.int32))
            np.testing.assert_allclose(packed[b, where], alone[0], atol=2e-6)


@BACKEND
def test_scale_is_applied(backend):
    q, k, v = PACKED.arrays()
    ids = jnp.asarray(PACKED.segment_ids_BT())
    scaled = attention(q, k, v, segment_ids_BT=ids, scale=0.5, backend=backend)
    np.testing.assert_allclose(
        scaled, attention(4.0 * q, k, v, segment_ids_BT=ids, scale=0.125, backend=backend), atol=2e-6
    )


@BACKEND
def test_dropout_is_unbiased_and_repeatable(backend):
    q, k, v = DROPPING.arrays()
    ids = jnp.asarray(DROPPING.segment_ids_BT())
    call = functools.partial(attention, q, k, v, segment_ids_BT=ids, backend=backend)
    dropped = jax.jit(lambda key: call(dropout_rate=DROPPING.dropout_rate, dropout_key=key))
    np.testing.assert_array_equal(dropped(jax.random.key(0)), dropped(jax.random.key(0)))
    assert np.max(np.abs(dropped(jax.random.key(0)) - dropped(jax.random.key(1)))) > 0.1
    samples = np.stack([dropped(key) for key in jax.random.split(jax.random.key(2), 200)])
    standard_error = samples.std(axis=0) / np.sqrt(len(samples))
    deviation = np.abs(samples.mean(axis=0) - np.asarray(call()))
    assert np.mean(deviation <= 4 * standard_error + 1e-6) > 0.995


@BACKEND
def test_dropout_drops_probabilities_after_the_softmax(backend):
    # Values of one: every output is the sum of a row's probabilities, and the kept ones are scaled by 1 / (1 - rate).
    q, k, _ = DROPPING.arrays()
    ids = jnp.asarray(DROPPING.segment_ids_BT())
    same = jnp.zeros_like(q)
    call = jax.jit(functools.partial(attention, dropout_rate=0.3, backend=backend))
    rows = call(same, k, jnp.ones_like(k), segment_ids_BT=ids, dropout_key=jax.random.key(0))
    lone = np.asarray(rows)[:, 0]  # the first token sees itself only: dropped, or scaled
    assert np.all(np.isclose(lone, 0.0) | np.isclose(lone, 1 / 0.7))
    kept = np.asarray(rows)[:, 9, :, 0] * 0.7 * 10  # ten equal probabilities: a whole number of them is kept
    np.testing.assert_allclose(kept, np.round(kept), atol=1e-4)


@BACKEND
def test_gradient_with_dropout_uses_the_mask_of_the_forward_pass(backend):
    q, k, v = DROPPING.arrays()
    ids, key = jnp.asarray(DROPPING.segment_ids_BT()), jax.random.key(3)

    @jax.jit
    def loss(arrays):
        out = attention(*arrays, segment_ids_BT=ids, dropout_rate=0.3, dropout_key=key, backend=backend)
        return jnp.sum(out * cotangents(DROPPING)[0])

    gradient = jax.jit(jax.grad(loss))((q, k, v))
    rng = np.random.default_rng(4)
    for i, a in enumerate((q, k, v)):
        direction = jnp.asarray(rng.standard_normal(a.shape), jnp.float32)
        step = 1e-2
        ahead, behind = ([x + (s * direction if j == i else 0) for j, x in enumerate((q, k, v))] for s in (step, -step))
        numeric = (loss(ahead) - loss(behind)) / (2 * step)
        np.testing.assert_allclose(jnp.sum(gradient[i] * direction), numeric, rtol=2e-2, atol=0.05)


def test_chunked_never_holds_the_square():
    def temporary_bytes(call, T):
        shape = jax.ShapeDtypeStruct((1, T, 1, 8), jnp.float32)
        ids = jax.ShapeDtypeStruct((1, T), jnp.int32)
        run = lambda q, k, v, ids: jnp.sum(call(q, k, v, segment_ids_BT=ids, scale=1.0).out_BTNH)  # noqa: E731
        compiled = jax.jit(jax.grad(run, argnums=(0, 1, 2))).lower(shape, shape, shape, ids).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    T = 1024
    assert temporary_bytes(xla_chunked.attention, T) < 0.5 * temporary_bytes(reference.attention, T)


def test_causality_by_gradients():
    q, k, v = PACKED.arrays()
    ids = PACKED.segment_ids_BT()
    t = 70
    for backend in NAMED:
        call = functools.partial(attention, segment_ids_BT=jnp.asarray(ids), backend=backend)
        dk, dv = jax.jit(jax.grad(lambda k, v, call=call: jnp.sum(call(q, k, v)[0, t]), argnums=(0, 1)))(k, v)
        seen = (np.arange(len(ids[0])) <= t) & (ids[0] == ids[0, t])
        for gradient in (dk[0], dv[0]):
            assert np.all(np.any(np.asarray(gradient)[seen] != 0, axis=(1, 2)))
            np.testing.assert_array_equal(np.asarray(gradient)[~seen], 0.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"backend": "xlaa"}, "xlaa.*expected one of auto"),
        ({"dropout_rate": 0.1}, "dropout_key"),
        ({"dropout_rate": 1.5}, "outside"),
        ({"segment_ids_BT": jnp.ones((1, 3), jnp.int32)}, "segment ids"),
        ({"k_BTKH": jnp.ones((1, 4, 3, 8)), "v_BTKH": jnp.ones((1, 4, 3, 8))}, "multiple"),
    ],
)
def test_bad_requests_are_named(change, message):
    x = jnp.ones((1, 4, 2, 8))
    request = {"q_BTNH": x, "k_BTKH": x, "v_BTKH": x, "segment_ids_BT": jnp.ones((1, 4), jnp.int32)} | change
    with pytest.raises(ValueError, match=message):
        attention(**request)
