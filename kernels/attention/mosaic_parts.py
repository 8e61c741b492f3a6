"""What the Mosaic GPU kernels of attention share: tiles in shared memory, the ring that is loaded ahead, and masks.

A program has `COMPUTE` warpgroups that multiply and one more that only loads. A computing warpgroup owns `ROWS` rows
of the scores (queries; keys in the pass for their gradients), the height of one wgmma instruction, and walks over the
columns a block at a time. TMA copies the blocks into a ring in shared memory, `stages` of them ahead. What overhangs
the arrays is read as zeros and not written, so that T and small head sizes need no padding.

Shapes: M rows of a warpgroup, S columns of one step, H head size.
"""

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Float, Int, UInt32

from kernels.attention import dropout
from kernels.attention.passes import Call
from kernels.attention.ranges import BlockRanges

ROWS = 64
COMPUTE = 2
LOADER = COMPUTE  # its index among the warpgroups
WARPGROUPS = "warpgroup"  # the axis over them
# Registers of a thread once the roles are known: (2 * 240 + 24) * 128 fit into the 65,536 of a multiprocessor.
COMPUTE_REGISTERS = 240
LOADER_REGISTERS = 24
LARGEST_HEAD_DIM = 128
# Far below every real score, but finite: exp2 of it is 0 and no NaN arises. A row's maximum starts above it, so that a
# row that sees nothing has a sum of 0.
HIDDEN = -1e30
LOWEST = -1e20
SMALLEST_SCALE = 1e-6  # HIDDEN * scale stays below LOWEST
# Vectors that lie across T are padded to a multiple of this, a multiple of every block: their copies stay aligned.
VECTOR_MULTIPLE = 128

# How 128 threads hold a block of scores, one number for each of its rows, or one for each of its columns.
MATRIX = plgpu.Layout.WGMMA
PER_ROW = MATRIX.reduce(1)
PER_COLUMN = MATRIX.reduce(0)


class BackwardOperands(NamedTuple):
    """What both backward kernels read: as arrays, and as references inside of the kernels."""

    q: Float[Array, "B T N H"]
    k: Float[Array, "B T K H"]
    v: Float[Array, "B T K H"]
    d_out: Float[Array, "B T N H"]
    minus_log_z: Float[Array, "B N padded"]  # of the forward pass, over `scale`: what the sums of S start from
    minus_delta: Float[Array, "B N padded"]  # the cotangent of log_z less the sum of out * d_out: the same for dP
    ids: Int[Array, "B padded"]
    ranges: Int[Array, "B blocks 4"]  # of the blocks that a program walks over
    streams: UInt32[Array, "B N"] | None


def tile_width(head_dim: int) -> int:
    """Columns of a tile in shared memory for heads of this size: the size, or 64 for small odd ones (zeros behind).

    Raises:
        NotImplementedError: TMA cannot copy such rows.
    """
    if head_dim % 16 == 0:
        return head_dim
    if head_dim % 8 == 0 and head_dim < 64:
        return 64
    raise NotImplementedError(f"heads of {head_dim}: TMA takes multiples of 16, or of 8 below 64")


def matrices(*shape: int, dtype: jnp.dtype):
    """Shared memory for matrices [..., rows, columns] of 16-bit numbers in the layout that wgmma reads."""
    columns = next(c for c in (64, 32, 16) if shape[-1] % c == 0)  # the wider the swizzle, the fewer bank conflicts
    return plgpu.SMEM(
        shape, dtype, transforms=(plgpu.TilingTransform((8, columns)), plgpu.SwizzleTransform(2 * columns))
    )


def head_columns(zero: Array, head_dim: int):
    """Index of a head's columns in global memory. A start that is not known in advance may overhang."""
    width = tile_width(head_dim)
    return slice(None) if width == head_dim else pl.ds(zero, width)


def padded_vectors(x: Array) -> Array:
    """[..., T] with zeros behind, up to a multiple of `VECTOR_MULTIPLE`."""
    return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, -x.shape[-1] % VECTOR_MULTIPLE)])


def stacked(ranges: BlockRanges) -> Int[Array, "B I 4"]:
    """The block ranges as one operand of a kernel."""
    return jnp.stack(ranges, axis=-1).astype(jnp.int32)


class Ring(NamedTuple):
    """Buffers of `stages` blocks that are filled together: barriers, and what to copy for a step."""

    # Barriers [stages] each: the copies have landed; all computing warpgroups are done with the slot.
    ready_and_free: tuple[Any, Any]
    copies: Callable[[Array], list[tuple[Any, Any]]]  # step -> (source in global memory, buffers [stages, ...])


def barriers(stages: int, num_copies: int) -> tuple[Any, Any]:
    """Types of a ring's `ready` and `free`."""
    return (
        plgpu.Barrier(num_arrivals=num_copies, num_barriers=stages),
        plgpu.Barrier(num_arrivals=COMPUTE, num_barriers=stages),
    )


def load_ahead(rings: list[Ring], steps: Array, stages: int) -> None:
    """The loading warpgroup's whole work."""

    def load(step, carry):
        slot = lax.rem(step, jnp.int32(stages))
        for (ready, free), copies in rings:

            @pl.when(step >= stages)
            def _(free=free):
                plgpu.barrier_wait(free.at[slot])

            for source, buffers in copies(step):
                plgpu.copy_gmem_to_smem(source, buffers.at[slot], ready.at[slot])
        return carry

    def drain(step, carry):
        for (_, free), _ in rings:
            plgpu.barrier_wait(free.at[lax.rem(step, jnp.int32(stages))])
        return carry

    lax.fori_loop(0, steps, load, None)
    lax.fori_loop(jnp.maximum(steps - stages, 0), steps, drain, None)


def over_blocks(ranges: tuple[Array, Array, Array, Array], step: Callable, carry: Any) -> Any:
    """`carry = step(j, carry, mixed)` for the blocks j of a range (see ranges.py). A mixed block needs masking."""
    first, plain_first, plain_end, end = ranges
    return lax.fori_loop(first, end, lambda j, carry: step(j, carry, (j < plain_first) | (j >= plain_end)), carry)


def by_role(
    warpgroup: Array,
    scratch: Mapping[str, Any],
    compute: Callable[[SimpleNamespace], None],
    load: Callable[[SimpleNamespace], None],
) -> None:
    """Allocates `scratch` and gives the warpgroups their work on it, and their shares of the registers."""

    def work(*refs):
        smem = SimpleNamespace(**dict(zip(scratch, refs, strict=True)))

        # In this order: ptxas keeps what the second branch needs in registers through the first, and the loader needs
        # few.
        @pl.when(warpgroup == LOADER)
        def _():
            plgpu.set_max_registers(LOADER_REGISTERS, action="decrease")
            load(smem)

        @pl.when(warpgroup < COMPUTE)
        def _():
            plgpu.set_max_registers(COMPUTE_REGISTERS, action="increase")
            compute(smem)

    pl.run_scoped(work, *scratch.values(), collective_axes=WARPGROUPS)


def load_rows(warpgroup: Array, ready: Any, copies: list[tuple[Any, Any]]) -> None:
    """Copies a warpgroup's own rows, pairs of a source and tiles for each warpgroup."""
    for source, tiles in copies:
        plgpu.copy_gmem_to_smem(source, tiles.at[warpgroup], ready.at[warpgroup])


def per_row(x_M: Array, shape: tuple[int, ...]) -> Array:
    """Repeats [M] over the columns."""
    return lax.broadcast_in_dim(x_M, shape, [0])


def per_column(x_S: Array, shape: tuple[int, ...]) -> Array:
    """Repeats [S] over the rows."""
    return lax.broadcast_in_dim(x_S, shape, [1])


def row_positions(first: Array) -> Array:
    """Positions in the sequence of a warpgroup's rows."""
    return first + plgpu.broadcasted_iota(jnp.int32, (ROWS,), 0, layout=PER_ROW)


def write_column_numbers(columns_smem: Any) -> None:
    """0, 1, ... into a warpgroup's own [S] of shared memory.

    Numbers that are computed instead would be kept in registers through all loops, and others spilled for them.
    """
    columns_smem[...] = plgpu.broadcasted_iota(jnp.int32, columns_smem.shape, 0, layout=PER_COLUMN)
    plgpu.commit_smem()


def hidden(x_MS: Array, visible_MS: Array, row_ids_M: Array, column_ids_S: Array) -> Array:
    """What sums of scores start from: x, or `HIDDEN` where not visible and where the segments differ.

    Masking before the matmul instead of after it needs the registers while no sum is under way.
    """
    x_MS = jnp.where(visible_MS, x_MS, HIDDEN)
    same_MS = per_row(row_ids_M, x_MS.shape) == per_column(column_ids_S, x_MS.shape)
    return jnp.where(same_MS, x_MS, HIDDEN)


def hide_keys(start_MS: Array, smem: SimpleNamespace, w: Array, slot: Array, *, first_query, first_key) -> Array:
    """`hidden` where a warpgroup's rows are queries: keys after a query, or of another segment."""
    q_ids_M = plgpu.layout_cast(smem.q_ids[w], PER_ROW)
    # The last position that a query sees; padding sees none.
    sees_M = jnp.where(q_ids_M != 0, row_positions(first_query), -1)
    k_ids_S = plgpu.layout_cast(smem.k_ids[slot], PER_COLUMN)
    columns_S = plgpu.layout_cast(smem.columns[w], PER_COLUMN)
    causal_MS = per_column(columns_S, start_MS.shape) <= per_row(sees_M - first_key, start_MS.shape)
    return hidden(start_MS, causal_MS, q_ids_M, k_ids_S)


def kept_keys(stream: Array, columns_smem: Any, *, first_query, first_key, shape: tuple[int, int], call: Call) -> Array:
    """Where dropout keeps the probabilities, where a warpgroup's rows are queries."""
    columns_S = plgpu.layout_cast(columns_smem[...], PER_COLUMN)
    t_MS = per_row(row_positions(first_query), shape)
    return dropout.keep(stream, t_MS, per_column(columns_S + first_key, shape), rate=call.dropout_rate)


def launch(kernel: Callable, out_type: Any, *, name: str, grid: dict[str, int], call: Call) -> Callable:
    """`kernel` as a function of arrays; the last axis of the grid runs fastest."""
    kernel.__name__ = name  # what profilers show
    return plgpu.kernel(
        kernel,
        out_type=out_type,
        grid=tuple(grid.values()),
        grid_names=tuple(grid),
        num_threads=COMPUTE + 1,
        thread_name=WARPGROUPS,
        compiler_params=plgpu.CompilerParams(approx_math=True),
        interpret=call.interpret,
    )
