import dataclasses
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels.attention import reference, xla_chunked
from kernels.attention.api import attention
from kernels.attention.contract import Request
from kernels.attention.dropout import Dropout
from kernels.workshop.cases import CASES, Case
from tests.kernels.attention_truth import assert_close, assert_true, with_gradients
from tests.kernels.backends import ON_CPU
from tests.kernels.plain_attention import assert_no_worse, truth_and_plain

CASE = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
BACKEND = pytest.mark.parametrize("backend", ON_CPU)
LONG = pytest.mark.long
PACKED = next(case for case in CASES if case.name == "packed")
DROPPING = next(case for case in CASES if case.name == "dropping")


@CASE
@BACKEND
def test_float32_against_float64(case, backend):
    assert_true(ON_CPU[backend], case)


@BACKEND
def test_padding_gives_zeros_and_takes_nothing(backend):
    case = next(case for case in CASES if case.name == "padded_in_front")
    padding = case.segment_ids_BT() == 0
    assert padding.any()
    results = with_gradients(ON_CPU[backend], case)
    results = results._replace(log_z=jnp.swapaxes(results.log_z, 1, 2))
    for a in results:
        np.testing.assert_array_equal(np.asarray(a)[padding], 0.0)
        assert np.all(np.isfinite(a))


@LONG  # the truth in float64 takes documents apart by its definition
@BACKEND
def test_packed_equals_apart(backend):
    q, k, v = PACKED.arrays()
    ids = PACKED.segment_ids_BT()
    serve = jax.jit(ON_CPU[backend])
    packed = serve(q, k, v, PACKED.request())
    for document in range(1, ids[0].max() + 1):
        (where,) = np.nonzero(ids[0] == document)
        apart = [a[:1, where] for a in (q, k, v)]
        alone = serve(*apart, PACKED.request(jnp.ones((1, len(where)), jnp.int32)))
        np.testing.assert_allclose(packed.out_BTNH[0, where], alone.out_BTNH[0], atol=2e-6)
        np.testing.assert_allclose(packed.log_z_BNT[0, :, where], alone.log_z_BNT[0].T, atol=2e-6)


@BACKEND
def test_ids_that_do_not_count_up(backend):
    # Any ids are legal, also those that come back, and those that fall: nothing may be skipped that can be seen.
    case = Case(name="falling", batch=1, seq_len=192, num_heads=1, num_kv_heads=1, head_dim=16)
    ids = np.repeat([3, 1, 3, 0, 2, 1, 7, 3], 24)[None]
    assert_true(ON_CPU[backend], OtherIds(**dataclasses.asdict(case), ids=tuple(ids[0])))


@dataclasses.dataclass(frozen=True, kw_only=True)
class OtherIds(Case):
    """A case with segment ids of its own."""

    ids: tuple[int, ...]

    def segment_ids_BT(self):
        return np.asarray([self.ids], np.int32)


# All draw the masks of the truth in float64, whose shares test_dropout.py counts.
@pytest.mark.parametrize(
    "backend", ["xla", pytest.param("xla_chunked", marks=LONG), pytest.param("triton", marks=LONG)]
)
def test_dropout_is_unbiased(backend):
    q, k, v = DROPPING.arrays()
    ids = jnp.asarray(DROPPING.segment_ids_BT()[:1])

    def serve(dropout):
        request = Request(segment_ids_BT=ids, scale=0.25, dropout=dropout)
        return ON_CPU[backend](q[:1], k[:1], v[:1], request).out_BTNH

    dropped = jax.jit(lambda key: serve(Dropout.from_key(key, rate=DROPPING.dropout_rate)))
    np.testing.assert_array_equal(dropped(jax.random.key(0)), dropped(jax.random.key(0)))
    samples = np.stack([dropped(key) for key in jax.random.split(jax.random.key(2), 100)])
    standard_error = samples.std(axis=0) / np.sqrt(len(samples))
    deviation = np.abs(samples.mean(axis=0) - np.asarray(jax.jit(serve)(None)))
    assert np.mean(deviation <= 4 * standard_error + 1e-6) > 0.99


# Float32 runs through all cases. Rounding depends on the numbers that are summed, not on heads or where padding lies.
SIXTEEN_BITS = [(case, jnp.bfloat16) for case in CASES if case.name in ("packed", "dropping", "many_blocks")]
SIXTEEN_BITS += [pytest.param(case, jnp.bfloat16, marks=LONG) for case in CASES if case.name in ("grouped", "ragged")]
SIXTEEN_BITS += [pytest.param(case, jnp.float16, marks=LONG) for case in (PACKED, DROPPING)]


@pytest.mark.parametrize(("case", "dtype"), SIXTEEN_BITS, ids=lambda value: getattr(value, "name", None))
@BACKEND
def test_sixteen_bits_are_no_worse_than_plain_attention(backend, case, dtype):
    truth, plain = truth_and_plain(case, dtype)
    actual = with_gradients(ON_CPU[backend], case, dtype=dtype)
    assert_close(actual, truth, dtype=dtype, bound=2e-2)
    assert_no_worse(actual, plain, truth)


def test_chunked_never_holds_the_square():
    def temporary_bytes(call, T):
        shape = jax.ShapeDtypeStruct((1, T, 1, 8), jnp.float32)
        ids = jax.ShapeDtypeStruct((1, T), jnp.int32)
        run = lambda q, k, v, ids: jnp.sum(call(q, k, v, Request(segment_ids_BT=ids, scale=1.0)).out_BTNH)  # noqa: E731
        compiled = jax.jit(jax.grad(run, argnums=(0, 1, 2))).lower(shape, shape, shape, ids).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    T = 1024
    assert temporary_bytes(xla_chunked.attention, T) < 0.5 * temporary_bytes(reference.attention, T)


@BACKEND
def test_causality_by_gradients(backend):
    q, k, v = PACKED.arrays()
    ids = PACKED.segment_ids_BT()
    t = 70
    serve = lambda k, v: jnp.sum(ON_CPU[backend](q, k, v, PACKED.request()).out_BTNH[0, t])  # noqa: E731
    dk, dv = jax.jit(jax.grad(serve, argnums=(0, 1)))(k, v)
    seen = (np.arange(len(ids[0])) <= t) & (ids[0] == ids[0, t])
    for gradient in (dk[0], dv[0]):
        assert np.all(np.any(np.asarray(gradient)[seen] != 0, axis=(1, 2)))
        np.testing.assert_array_equal(np.asarray(gradient)[~seen], 0.0)


def test_the_scale_of_the_api_is_that_of_the_head_size():
    q, k, v = PACKED.arrays()
    ids = jnp.asarray(PACKED.segment_ids_BT())
    call = jax.jit(attention, static_argnames="scale")
    by_default = call(q, k, v, segment_ids_BT=ids)
    np.testing.assert_array_equal(by_default, call(q, k, v, segment_ids_BT=ids, scale=64**-0.5))
    assert np.max(np.abs(by_default - call(q, k, v, segment_ids_BT=ids, scale=0.5))) > 0.1


def test_auto_takes_the_first_backend_that_serves():
    q, k, v = PACKED.arrays()
    ids = jnp.asarray(PACKED.segment_ids_BT())
    call = jax.jit(attention, static_argnames="backend")
    auto, chunked = (call(q, k, v, segment_ids_BT=ids, backend=name) for name in ("auto", "xla_chunked"))
    np.testing.assert_array_equal(auto, chunked)


def test_names_of_backends_need_no_jax():
    code = "import sys; from kernels.attention.backends import BACKENDS; assert BACKENDS and 'jax' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("backend", ["triton", "cudnn"])
def test_a_gpu_backend_says_that_it_needs_one(backend):
    x = jnp.ones((1, 4, 2, 8), jnp.bfloat16)
    with pytest.raises(NotImplementedError, match=f"{backend}: .* NVIDIA GPU .* not cpu"):
        attention(x, x, x, segment_ids_BT=jnp.ones((1, 4), jnp.int32), backend=backend)


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
