"""Backend `triton` in interpret mode against float64, with blocks so small that rows have many, and its lowering.

Every case of the shared table is run in `test_attention`; what is here depends on blocks, grids and loops.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels.attention import triton, triton_backward, triton_tiles
from kernels.attention.api import attend
from kernels.attention.blocks import Blocks
from kernels.attention.contract import Request
from kernels.attention.passes import Call
from kernels.workshop.cases import Case
from tests.kernels.attention_truth import Truth, assert_true, with_gradients

PASSES = ("forward", "dq", "dkv")
LONG = functools.partial(pytest.param, marks=pytest.mark.long)
PACKED = Case(
    name="packed",
    batch=2,
    seq_len=150,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    documents=(70, 3, 60),
    dropout_rate=0.2,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AnyIds(Case):
    """A case whose segment ids are given."""

    ids: tuple[tuple[int, ...], ...]

    def segment_ids_BT(self) -> np.ndarray:
        return np.array(self.ids, np.int32)


def all_blocks(block_q: int, block_k: int) -> dict:
    return {p: Blocks(block_q, block_k, 4, 2) for p in PASSES}


@functools.cache
def interpreted(block_q: int, block_k: int):
    return functools.partial(triton.attention, interpret=True, blocks=all_blocks(block_q, block_k))


@pytest.mark.parametrize(("block_q", "block_k"), [LONG(16, 16), (64, 16), (16, 64), LONG(128, 128)])
def test_any_blocks_give_the_truth(block_q, block_k):
    assert_true(interpreted(block_q, block_k), PACKED)


def test_any_segment_ids_give_the_truth():
    rows = ((1,) * 20 + (2,) * 30 + (1,) * 26, (9,) * 33 + (0,) * 20 + (-4,) * 23, (5, 0, 3, 5) * 19, (0,) * 76)
    case = AnyIds(name="any", batch=4, seq_len=76, num_heads=2, num_kv_heads=1, head_dim=16, ids=rows)
    truth = assert_true(interpreted(16, 16), case)
    assert not truth.out[3].any()  # a row of padding
    assert truth.out[:3].any()


@pytest.mark.parametrize("head_dim", [LONG(64), 80])
def test_blocks_of_the_table_in_bfloat16(head_dim):
    case = Case(name="long", batch=1, seq_len=290, num_heads=2, num_kv_heads=1, head_dim=head_dim, documents=(200, 61))
    assert_true(functools.partial(triton.attention, interpret=True), case, bound=1e-2, dtype=jnp.bfloat16)


@pytest.mark.parametrize(("enough_programs", "l2_bytes"), [(1, 0), (10, 2 * 2 * 100 * 16 * 4), (10, 10**9)])
def test_grids_cover_every_head_once(monkeypatch, enough_programs, l2_bytes):
    # 4 key/value heads in sections of 1, 2 (in the key pass, with twice the bytes, 1) or 4; groups in 1 part or 2.
    monkeypatch.setattr(triton_tiles, "L2_BYTES", l2_bytes)
    monkeypatch.setattr(triton_backward, "ENOUGH_PROGRAMS", enough_programs)
    case = Case(name="heads", batch=2, seq_len=100, num_heads=8, num_kv_heads=4, head_dim=16, documents=(40, 60))
    assert_true(interpreted(64, 64), case)


def test_parts_of_a_group():
    def parts(B, K, G, T):
        blocks = Blocks(64, 128, 8, 2)
        call = Call(B=B, T=T, N=K * G, K=K, H=128, scale=1.0, dropout_rate=0.0, blocks=blocks, interpret=True)
        return triton_backward._splits(call)

    assert parts(B=1, K=1, G=8, T=4096) == 8  # 32 programs for 132 multiprocessors
    assert parts(B=1, K=8, G=8, T=4096) == 2
    assert parts(B=4, K=8, G=8, T=4096) == 1
    assert parts(B=1, K=1, G=1, T=128) == 1


def test_blocks_that_cannot_interact_are_not_read():
    # Documents of whole blocks: a block that is read by another document's would bring its NaN along.
    case = Case(name="whole", batch=1, seq_len=96, num_heads=2, num_kv_heads=1, head_dim=16, documents=(32, 32, 32))
    clean = with_gradients(interpreted(16, 16), case)
    arrays = tuple(a.at[:, 32:64].set(jnp.nan) for a in case.arrays())
    actual = with_gradients(interpreted(16, 16), case, arrays=arrays)
    others = np.r_[0:32, 64:96]
    for name, a, c in zip(Truth._fields, actual, clean, strict=True):
        a, c = (np.swapaxes(x, 1, 2) if name == "log_z" else np.asarray(x) for x in (a, c))
        np.testing.assert_array_equal(a[:, others], c[:, others], err_msg=name)
        assert np.isnan(a[:, 32:64]).any(), name


def on_gpu(kind: str):
    """A trace for that kind of GPU."""
    device = jax.sharding.AbstractDevice(device_kind=kind, num_cores=None, platform="gpu")
    return jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((1,), ("x",), abstract_device=device))


@pytest.mark.parametrize("kind", ["NVIDIA A100-SXM4-80GB", "NVIDIA H100 80GB HBM3"])
@pytest.mark.parametrize(
    ("head_dim", "dtype", "T"),
    [
        (64, jnp.bfloat16, 1000),
        (80, jnp.bfloat16, 1024),
        (96, jnp.float16, 1000),
        (128, jnp.bfloat16, 1024),
        (256, jnp.bfloat16, 1000),
        (80, jnp.float32, 1000),
        (128, jnp.bfloat16, 5),
    ],
)
def test_lowers_for_cuda(head_dim, dtype, T, kind):
    # Interpret mode takes blocks that Triton does not, those that are not powers of two.
    q, k = (jax.ShapeDtypeStruct((2, T, n, head_dim), dtype) for n in (4, 2))

    def loss(q, k, v, request):
        out, log_z = triton.attention(q, k, v, request)
        return jnp.sum(out.astype(jnp.float32)) + jnp.sum(log_z)

    case = Case(name="", batch=2, seq_len=T, num_heads=4, num_kv_heads=2, head_dim=head_dim, dropout_rate=0.1)
    with on_gpu(kind):
        traced = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).trace(q, k, k, jax.eval_shape(case.request))
        lowered = traced.lower(lowering_platforms=("cuda",))
    assert lowered.as_text().count("__gpu$xla.gpu.triton") == 3


def test_auto_takes_triton_before_mosaic_on_hopper():
    case = Case("whole", 1, 128, 2, 2, 64)
    q, k, v, _, _ = case.shapes(jnp.bfloat16)
    with on_gpu("NVIDIA H100 80GB HBM3"):
        jaxpr = str(jax.make_jaxpr(lambda q, k, v: attend(q, k, v, case.request()))(q, k, v))
    assert "attention_forward" in jaxpr
    assert "mosaic" not in jaxpr


def test_requests_that_cannot_be_served_say_why():
    def call(dtype=jnp.float32, head_dim=16, k_dtype=None, scale=1.0, interpret=True):
        q, k = (jnp.ones((1, 16, 2, head_dim), d) for d in (dtype, k_dtype or dtype))
        request = Request(segment_ids_BT=jnp.ones((1, 16), jnp.int32), scale=scale)
        return triton.attention(q, k, k, request, interpret=interpret)

    for message, request in {
        "int32": {"dtype": jnp.int32},
        "bfloat16": {"k_dtype": jnp.bfloat16},
        "512 are larger than 256": {"head_dim": 512},
        "not positive": {"scale": -1.0},
        "need an NVIDIA GPU from Ampere on, not cpu": {"interpret": False},
    }.items():
        with pytest.raises(NotImplementedError, match=message):
            call(**request)
    with on_gpu("Tesla V100-SXM2-16GB"), pytest.raises(NotImplementedError, match="Ampere on, not Tesla V100"):
        jax.eval_shape(functools.partial(call, interpret=False))
