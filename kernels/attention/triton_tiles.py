"""What the forward and backward Triton kernels share: the static facts of a call, its grid, and operations on tiles.

A program owns one block of queries (or keys) of one head and walks over blocks of the other side. Tiles are padded to
powers of two by masked loads, in the kernel only: nothing is padded or repeated in memory.

Shapes: B batch, T sequence, N query heads, K key/value heads, H head size, h = H padded to a power of two; t queries
and s keys of one block.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array

from kernels.attention.passes import Call, Inputs
from kernels.attention.ranges import BlockRanges, key_ranges

# Half of the smallest L2 cache served (A100: 40 MiB, H100: 50 MiB), so that what streams through leaves room.
L2_BYTES = 20 * 2**20


def padded_head_dim(call: Call) -> int:
    """h: H padded to a power of two that tensor cores take."""
    return max(16, pl.next_power_of_2(call.H))


def heads_at_once(call: Call, bytes_per_kv_head: int) -> int:
    """Key/value heads whose working set stays in the L2 cache together; divides K."""
    fitting = max(1, L2_BYTES // bytes_per_kv_head)
    return max(k for k in range(1, call.K + 1) if call.K % k == 0 and k <= fitting)


def pallas_call(kernel: Callable, call: Call, **specs) -> Callable:
    """`pl.pallas_call` of `kernel(*refs, call=call)` with the compiler parameters of the blocks."""
    params = plgpu.CompilerParams(num_warps=call.blocks.num_warps, num_stages=call.blocks.num_stages)
    kernel = functools.partial(kernel, call=call)
    return pl.pallas_call(kernel, compiler_params=params, interpret=call.interpret, **specs)


class Operands(NamedTuple):
    """What every kernel reads: as arrays, as their block specs, or as references inside of the kernel."""

    ranges: BlockRanges  # of the blocks that a program walks over
    query_ids: Any
    key_ids: Any
    q: Any
    k: Any
    v: Any
    streams: Any  # None without dropout


class QueryGrid(NamedTuple):
    """A grid whose programs own blocks of queries, and what all such kernels read."""

    grid: tuple[int, int, int]
    specs: Operands
    operands: Operands
    vector: pl.BlockSpec  # of a float32 number for each query [B, N, T]


def over_queries(inputs: Inputs, call: Call) -> QueryGrid:
    """Heads that share the L2 cache run side by side, the longest blocks of them first: short ones fill the end."""
    block_q, all_keys = call.blocks.block_q, call.key_blocks * call.blocks.block_k
    q_BTNH, k_BTKH, v_BTKH, segment_ids_BT, streams_BN = inputs
    at_once, h = heads_at_once(call, 2 * call.T * call.H * k_BTKH.dtype.itemsize), padded_head_dim(call)
    sections = call.K // at_once

    def at(choose):
        """An index map from the row, query head and block of queries of a program."""

        def index(x, y, z):
            n = lax.rem(z, sections) * at_once * call.group + x
            return choose(lax.div(z, sections), n, call.query_blocks - 1 - y)

        return index

    keys = pl.BlockSpec((None, all_keys, None, h), at(lambda b, n, i: (b, 0, lax.div(n, call.group), 0)))
    specs = Operands(
        ranges=BlockRanges._make([pl.BlockSpec((None, None), at(lambda b, n, i: (b, i)))] * 4),
        query_ids=pl.BlockSpec((None, block_q), at(lambda b, n, i: (b, i))),
        key_ids=pl.BlockSpec((None, all_keys), at(lambda b, n, i: (b, 0))),
        q=pl.BlockSpec((None, block_q, None, h), at(lambda b, n, i: (b, i, n, 0))),
        k=keys,
        v=keys,
        streams=None if streams_BN is None else pl.BlockSpec((None, None), at(lambda b, n, i: (b, n))),
    )
    ranges = key_ranges(segment_ids_BT, call.blocks)
    operands = Operands(ranges, segment_ids_BT, segment_ids_BT, q_BTNH, k_BTKH, v_BTKH, streams_BN)
    vector = pl.BlockSpec((None, None, block_q), at(lambda b, n, i: (b, n, i)))
    return QueryGrid((at_once * call.group, call.query_blocks, call.B * sections), specs, operands, vector)


def matmul(a: Array, b: Array, *, transpose_b: bool = False) -> Array:
    """`a @ b` or `a @ b.T`, accumulated in float32; float32 operands are not rounded to TF32."""
    return lax.dot_general(
        a,
        b,
        (((1,), (1 if transpose_b else 0,)), ((), ())),
        precision=lax.Precision.HIGHEST if a.dtype == jnp.float32 else lax.Precision.DEFAULT,
        preferred_element_type=jnp.float32,
    )


def exp2(x: Array, call: Call) -> Array:
    """2 ** x in one instruction. The plain one spends three more on each score to keep results below 2 ** -126."""
    if call.interpret:
        return jnp.exp2(x)
    (power,) = plgpu.elementwise_inline_asm(
        "ex2.approx.ftz.f32 $0, $1;",
        args=[x],
        constraints="=f,f",
        pack=1,
        result_shape_dtypes=[jax.ShapeDtypeStruct(x.shape, x.dtype)],
    )
    return power


def load(ref, positions: Array, call: Call, *, inside: bool = False) -> Array:
    """A tile [rows, h] or a vector [rows]; what lies beyond T or H reads as 0.

    `positions`, int32 [rows], are those of the rows in the sequence. `inside` promises that no row is beyond T.
    """
    mask = _mask(positions, len(ref.shape), call, inside=inside)
    if mask is None:
        return plgpu.load(ref)
    return plgpu.load(ref, mask=jnp.broadcast_to(mask, ref.shape), other=jnp.zeros((), ref.dtype))


def store(ref, values: Array, positions: Array, call: Call) -> None:
    """The reverse of `load`; nothing is written beyond T or H."""
    mask = _mask(positions, values.ndim, call, inside=False)
    plgpu.store(ref, values.astype(ref.dtype), mask=None if mask is None else jnp.broadcast_to(mask, values.shape))


def _mask(positions: Array, ndim: int, call: Call, *, inside: bool) -> Array | None:
    """What of a tile or vector exists; None if all of it does, so that whole tiles are loaded without any test."""
    rows = None if inside or call.T % len(positions) == 0 else positions < call.T
    if ndim == 1:
        return rows
    h = padded_head_dim(call)
    columns = None if h == call.H else jnp.arange(h)[None, :] < call.H
    if rows is None or columns is None:
        return columns if rows is None else rows[:, None]
    return rows[:, None] & columns


def query_positions(call: Call) -> Array:
    """Where the queries of an `over_queries` program are in the sequence."""
    return (call.query_blocks - 1 - pl.program_id(1)) * call.blocks.block_q + jnp.arange(call.blocks.block_q)


def horizon(positions: Array, ids: Array) -> Array:
    """The last key position each query may see: its own, or -1 for padding. Saves the mask a test for each score."""
    return jnp.where(ids != 0, positions, -1)


def over_blocks(ranges: Sequence, step: Callable, carry, *, heads: int = 1):
    """`carry = step(j, g, carry, masked=...)` for every head g and every block j of the ranges.

    `ranges` are the four scalars of a `BlockRanges`; `step` is traced twice. First come all blocks that need a mask, on
    either side of the plain ones; then the plain ones, which are most and skip the mask's comparisons. (Both kinds for
    one head after the other take more registers; one long loop over heads and blocks makes the compiler run the matmuls
    of an H100 one by one.)
    """
    first, plain_first, plain_end, end = ranges
    before = plain_first - first

    def masked_blocks(g, carry):
        def masked_step(n, carry):
            return step(jnp.where(n < before, first + n, plain_end + n - before), g, carry, masked=True)

        return lax.fori_loop(0, before + end - plain_end, masked_step, carry)

    def plain_blocks(g, carry):
        return lax.fori_loop(plain_first, plain_end, lambda j, carry: step(j, g, carry, masked=False), carry)

    for blocks in (masked_blocks, plain_blocks):
        carry = blocks(jnp.zeros((), jnp.int32), carry) if heads == 1 else lax.fori_loop(0, heads, blocks, carry)
    return carry
