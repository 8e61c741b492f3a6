"""The Hopper kernels, run by JAX's simulator of Mosaic GPU on the CPU with race detection, against float64."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from kernels.attention import mosaic, mosaic_parts
from kernels.attention.blocks import Blocks
from kernels.attention.contract import AttentionOutput, Request
from kernels.workshop import mosaic_simulator
from kernels.workshop.cases import Case
from tests.kernels.attention_truth import Truth, assert_close, cotangents, relative_error
from tests.kernels.plain_attention import assert_no_worse, truth_and_plain

# The smallest blocks: rows of a few hundred tokens then have many, and the ring in shared memory is used again.
SMALL = {"forward": Blocks(128, 64, 12, 2), "dq": Blocks(128, 64, 12, 2), "dkv": Blocks(64, 128, 12, 2)}
LARGE = {"forward": Blocks(128, 128, 12, 3), "dq": Blocks(128, 128, 12, 2), "dkv": Blocks(128, 128, 12, 3)}


@dataclasses.dataclass(frozen=True)
class Scattered(Case):
    """Any ids, in any order."""

    def segment_ids_BT(self) -> np.ndarray:
        return np.random.default_rng(3).choice([0, 5, 2, -7], size=(self.batch, self.seq_len)).astype(np.int32)


# The simulator compiles for seconds and takes one more for some programs. So cases are few and small, and those of one
# shape, which differ in their segments, share the compiled kernels.
SHAPE = (1, 157, 2, 1, 64)
SMALL_CASES = (
    Case("packed", *SHAPE, documents=(50, 33, 45)),
    Case("padded_in_front", *SHAPE, documents=(1, 70), padded_in_front=True),
    Scattered("scattered", *SHAPE),
    Case("one_kv_head_dropping", 2, 96, 3, 1, 80, documents=(7, 60), dropout_rate=0.3),
    Case("single_token", 1, 1, 2, 2, 24),
)
MANY_BLOCKS = Case("many_blocks", 1, 520, 1, 1, 8, documents=(450, 50))
WIDE = Case("wide", 1, 300, 2, 1, 128, documents=(50, 33, 45))


@pytest.mark.slow
@pytest.mark.parametrize("case", SMALL_CASES, ids=lambda case: case.name)
def test_case_in_bfloat16(case):
    check(case, jnp.bfloat16, "small")


@pytest.mark.slow
@pytest.mark.long
def test_many_blocks_in_bfloat16():
    check(MANY_BLOCKS, jnp.bfloat16, "small")


@pytest.mark.slow
def test_large_blocks_in_float16():
    check(WIDE, jnp.float16, "large")


@functools.cache
def simulated(blocks: str):
    """Forward pass and its pullback, and the backward pass: apart, for races are asked for after each."""
    blocks = {"small": SMALL, "large": LARGE}[blocks]
    serve = functools.partial(mosaic.attention, simulator=mosaic_simulator.parameters(), blocks=blocks)
    forward = jax.jit(lambda arrays, request: jax.vjp(lambda q, k, v: serve(q, k, v, request), *arrays))
    return forward, jax.jit(lambda pull, d_outputs: pull(d_outputs))


def check(case: Case, dtype, blocks: str) -> None:
    truth, plain = truth_and_plain(case, dtype)
    forward, backward = simulated(blocks)
    output, pull = jax.block_until_ready(forward(case.arrays(dtype=dtype), case.request()))
    assert not mosaic_simulator.races_found()
    gradients = jax.block_until_ready(backward(pull, AttentionOutput(*cotangents(case, dtype))))
    assert not mosaic_simulator.races_found()
    actual, padding = Truth(*output, *gradients), case.segment_ids_BT() == 0
    assert_close(actual, truth, dtype=dtype, bound=2e-2)
    for name, a in actual._asdict().items():
        assert np.all(np.isfinite(np.asarray(a, np.float32))), name
        by_token = np.asarray(a, np.float32).swapaxes(1, 2) if name == "log_z" else np.asarray(a, np.float32)
        np.testing.assert_array_equal(by_token[padding], 0.0)
    if case.seq_len > 1:  # as in test_attention
        assert_no_worse(actual, plain, truth)


@pytest.mark.parametrize("waits", [True, False], ids=["with barrier", "without"])
def test_simulator_finds_reads_by_wgmma_that_do_not_wait(waits):
    """One warpgroup fills shared memory, the other multiplies it."""

    def kernel(x_ref, out_ref, x_smem, out_smem, loaded, told):
        w = jax.lax.axis_index("warpgroup")

        @pl.when(w == 0)
        def _():
            plgpu.copy_gmem_to_smem(x_ref, x_smem, loaded)
            plgpu.barrier_wait(loaded)
            plgpu.barrier_arrive(told)

        @pl.when(w == 1)
        def _():
            if waits:
                plgpu.barrier_wait(told)

            def square(acc):
                plgpu.wgmma(acc, x_smem, x_smem.T)
                return acc[...]

            out_smem[...] = pl.run_scoped(square, plgpu.ACC((64, 64), jnp.float32))
            plgpu.commit_smem()
            plgpu.copy_smem_to_gmem(out_smem, out_ref)
            plgpu.wait_smem_to_gmem(0)
            if not waits:
                plgpu.barrier_wait(told)

    square = plgpu.kernel(
        kernel,
        out_type=jax.ShapeDtypeStruct((64, 64), jnp.float32),
        scratch_types=[
            mosaic_parts.matrices(64, 64, dtype=jnp.bfloat16),
            plgpu.SMEM((64, 64), jnp.float32),
            plgpu.Barrier(),
            plgpu.Barrier(),
        ],
        num_threads=2,
        thread_name="warpgroup",
        interpret=mosaic_simulator.parameters(),
    )
    x = jnp.asarray(np.random.default_rng(0).standard_normal((64, 64)), jnp.bfloat16)
    out = np.asarray(square(x))
    assert mosaic_simulator.races_found() != waits
    if waits:
        exact = np.asarray(x, np.float64) @ np.asarray(x, np.float64).T
        assert relative_error(out, exact) < 1e-6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dtype": jnp.float32}, "float32.*expected the same of bfloat16, float16"),
        ({"head_dim": 256}, "heads of 256.*registers"),
        ({"head_dim": 72}, "heads of 72.*multiples of 16"),
        ({"scale": -1.0}, "scale -1.0 is not positive"),
        ({"blocks": SMALL | {"dq": Blocks(64, 64, 8, 2)}}, "blocks of 64 x 64 for dq"),
        ({"simulator": None}, "only Hopper has, not cpu"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_the_kernels_cannot_serve_is_said(change, message):
    asked = {"dtype": jnp.bfloat16, "head_dim": 64, "scale": 0.1, "blocks": SMALL, "simulator": object()} | change
    x = jnp.ones((1, 8, 2, asked["head_dim"]), asked["dtype"])
    request = Request(segment_ids_BT=jnp.ones((1, 8), jnp.int32), scale=asked["scale"])
    with pytest.raises(NotImplementedError, match=message):
        mosaic.attention(x, x, x, request, simulator=asked["simulator"], blocks=asked["blocks"])
