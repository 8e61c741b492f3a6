"""A model of how long one attention kernel takes, from its block sizes and what the compiler says of it.

It ranks block sizes for a GPU that is not there, and no more: rates are those of data sheets, nothing is fitted to a
measurement. Parts of the work compete: matmuls, arithmetic on scores and their exponentials, operands from shared
memory, operands from the L2 cache, and the time that the steps of a block take at least, one after the other.
"""

import dataclasses
import math

from kernels import aot, ptx
from kernels.attention.blocks import MATMULS, Blocks, Pass
from kernels.workshop.cases import Case
from kernels.workshop.work import loaded_bytes, touched_tiles

# Float32 instructions on each score, beside its exponential: scale, maximum, sum, differences, products, conversion.
ARITHMETIC: dict[Pass, float] = {"forward": 3.5, "dq": 3.5, "dkv": 4.0}
# Cycles of a step that depend on each other, however small its tiles: two matmuls, two reductions over lanes, an
# exponential, a barrier (of the order of the latencies in Luo et al. 2024, 2402.13499).
CHAIN = 300
SCHEDULERS = 4  # of a core, each of which issues for one warp at a time


@dataclasses.dataclass(frozen=True)
class Rates:
    """Of the whole GPU, per second."""

    cycles: float  # of all cores together
    flops: dict[str, float]  # by kind of matmul instruction
    arithmetic: float  # float32 instructions
    exponentials: float
    shared_memory: float  # bytes
    l2: float  # bytes


def _rates(cores: int, clock: float, lanes: int, tensor_flops: dict[str, float], l2: float) -> Rates:
    flops = {**tensor_flops, "none": 2 * lanes * cores * clock}
    return Rates(cores * clock, flops, lanes * cores * clock, 16 * cores * clock, 128 * cores * clock, l2)


# NVIDIA A100 and H100 white papers, CUDA C++ Programming Guide (throughput of instructions). L2: measured read rates
# of Chips and Cheese. Of wgmma's rate, mma.sync reaches 63 % on Hopper (Luo et al. 2024, 2402.13499).
RATES = {
    "sm80": _rates(108, 1.41e9, 64, {"mma": 312e12}, 4.5e12),
    "sm90": _rates(132, 1.755e9, 128, {"wgmma": 989e12, "mma": 0.63 * 989e12}, 5.7e12),
}


def modelled_seconds(case: Case, *, kernel: ptx.Kernel, kind: str, blocks: Blocks, kernel_pass: Pass) -> float:
    """Seconds of one call of a kernel on a case, if nothing but the parts named above took time.

    A scheduler with one warp runs matmul and softmax one after the other; with w warps, all but 1 / w of the lesser
    hides behind the greater. A step's chain of latencies is filled by the other blocks of the core. Loads hide where
    the pipeline has more than one stage. The case's documents say how many tiles are computed in vain. Of the compiled
    kernel, matmul instructions, registers and shared memory count. `kind` is a key of `aot.TARGETS`.
    """
    limits = aot.limits(kind)
    rates, matmul_kind = RATES[limits.capability], kernel.mma_kind.split("+")[0]
    occupancy = kernel.occupancy(limits)
    if not occupancy.blocks:
        return math.inf
    steps = touched_tiles(case, blocks) * case.num_heads
    scores, warps = steps * blocks.block_q * blocks.block_k, kernel.threads // 32
    own, other = (blocks.block_k, blocks.block_q) if kernel_pass == "dkv" else (blocks.block_q, blocks.block_k)
    # With mma.sync each warp owns rows of a tile, 16 at least: a block with fewer rows than that computes some twice.
    rows, twice = (max(16.0, own / warps), max(1.0, 16 * warps / own)) if matmul_kind == "mma" else (math.inf, 1.0)
    matmuls = twice * 2 * MATMULS[kernel_pass] * scores * case.head_dim / rates.flops[matmul_kind]
    # It takes its operands from registers: every warp loads the streamed tile for itself. wgmma reads it in place.
    operands = MATMULS[kernel_pass] * case.head_dim * 2 * scores / rows / rates.shared_memory
    # The forward pass scales its accumulator in every step.
    arithmetic = ARITHMETIC[kernel_pass] + (case.head_dim / other if kernel_pass == "forward" else 0)
    softmax = scores * (arithmetic / rates.arithmetic + 1 / rates.exponentials)
    parts = (matmuls, operands, softmax)
    warps_each = max(1.0, occupancy.blocks * warps / SCHEDULERS)
    computing = max(parts) + (sum(parts) - max(parts)) / warps_each
    computing += steps * CHAIN / occupancy.blocks / rates.cycles
    loading = loaded_bytes(case, blocks=blocks, kernel_pass=kernel_pass) / rates.l2
    return max(computing, loading) if blocks.num_stages > 1 else computing + loading
