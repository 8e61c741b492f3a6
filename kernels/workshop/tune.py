"""Ranks block sizes of the attention kernels and writes the best into `kernels/attention/blocks.csv`.

    python -m kernels.workshop.tune                                    # all kernels, for the GPUs described
    python -m kernels.workshop.tune --backends triton --head-dims 128 --kinds a100 --write

Without a GPU a candidate is compiled for the described one. First come those without spilled registers and serialised
wgmma, then those with the faster matmul instruction, then the modelled time (`cost.py`), then the deeper pipeline and
the smaller shared memory; those that the model rules out beforehand are not compiled. On a GPU all are timed, and the
time decides. The best one that is sound in all of `VARIANTS` is taken.
"""

import argparse
import csv
import dataclasses
import importlib
import itertools
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp

from allam_jax.report.markdown import table
from kernels import aot, device, ptx
from kernels.attention.backends import MODULES
from kernels.attention.blocks import FILE, PASSES, Blocks, Key, Pass, pass_of, read_table
from kernels.workshop import cost, measure
from kernels.workshop.cases import Case, packed

BACKENDS = ("triton", "mosaic")
DTYPES = {"bfloat16": jnp.dtype(jnp.bfloat16), "float32": jnp.dtype(jnp.float32)}
HEAD_DIMS = (64, 128, 256)
# Numbers of 32 bits that a thread can hold for the accumulators and the tile of scores; the rest are its operands.
# With mma.sync the operands are in registers too.
MOST_ACCUMULATORS = {"sm80": 160, "sm90": 192}
FEWEST_OTHERS = 56  # registers for operands, addresses and rows' maxima; kernels of all sizes have more
# For the passes that are compiled but not looked at.
SMALL: dict[str, dict[Pass, Blocks]] = {
    "triton": dict.fromkeys(PASSES, Blocks(16, 16, 4, 1)),
    "mosaic": {"forward": Blocks(128, 64, 12, 2), "dq": Blocks(128, 64, 12, 2), "dkv": Blocks(64, 128, 12, 2)},
}
CASE = Case(name="tuning", batch=2, seq_len=4096, num_heads=16, num_kv_heads=16, head_dim=128, documents=packed(4096))
# What else the same blocks must serve; each makes another kernel, with registers of its own.
VARIANTS = (
    dataclasses.replace(CASE, num_heads=8, num_kv_heads=4, dropout_rate=0.1),
    dataclasses.replace(CASE, num_heads=32, num_kv_heads=32, dropout_rate=0.1),
    dataclasses.replace(CASE, num_heads=32, num_kv_heads=8, dropout_rate=0.1),
    dataclasses.replace(CASE, seq_len=4000, dropout_rate=0.1),
    dataclasses.replace(CASE, num_heads=12, num_kv_heads=4, batch=4),
    dataclasses.replace(CASE, num_heads=8, num_kv_heads=1, seq_len=8192),
    dataclasses.replace(CASE, num_heads=8, num_kv_heads=8, batch=1),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Candidate:
    """Block sizes, what the compiler says of them, and how long they take."""

    blocks: Blocks
    kernel: ptx.Kernel
    modelled: float  # seconds
    measured: float | None = None  # seconds

    @property
    def rank(self) -> tuple:
        """Less is better."""
        if self.measured is not None:
            return (self.measured,)
        order = ("wgmma", "wgmma+mma", "mma", "none")
        kernel = self.kernel
        instruction, stages = order.index(kernel.mma_kind), self.blocks.num_stages
        return not _sound(kernel), instruction, self.modelled, -stages, kernel.shared_memory, self.blocks


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; gives the exit code."""
    parser = argparse.ArgumentParser(prog="python -m kernels.workshop.tune", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--backends", nargs="+", choices=BACKENDS, default=BACKENDS)
    parser.add_argument("--kinds", nargs="+", choices=list(aot.TARGETS), default=list(aot.TARGETS), help="GPUs")
    help_dtypes = "float32 is worth it only where a GPU times it: the model knows no matmuls without tensor cores"
    parser.add_argument("--dtypes", nargs="+", choices=list(DTYPES), default=["bfloat16"], help=help_dtypes)
    parser.add_argument("--head-dims", nargs="+", type=int, choices=HEAD_DIMS, default=list(HEAD_DIMS))
    parser.add_argument("--passes", nargs="+", choices=PASSES, default=list(PASSES))
    parser.add_argument("--top", type=int, default=5, help="candidates to print of each kernel")
    parser.add_argument("--write", action="store_true", help="put the best ones into blocks.csv")
    args = parser.parse_args(argv)
    if aot.has_gpu():
        here = device.of_device(jax.devices()[0])
        args.kinds = [kind for kind in args.kinds if aot.limits(kind).capability == here.capability]
        print(f"candidates are timed on {here.kind}" if args.kinds else f"{here.kind} is not described: nothing to do")
    best: dict[Key, Blocks] = {}
    try:
        for kind, backend, dtype, head_dim, kernel_pass in itertools.product(
            args.kinds, args.backends, args.dtypes, args.head_dims, args.passes
        ):
            capability = aot.limits(kind).capability
            key = Key(backend, capability, DTYPES[dtype].itemsize, head_dim, kernel_pass)
            found, tried = search(key, kind)
            if tried:
                _print(key, kind, tried[: args.top], len(tried), found)
            if found:
                best[key] = found.blocks
    except aot.Unavailable as error:
        print(f"kernels.workshop.tune: {error}", file=sys.stderr)
        return 1
    if args.write:
        write(best)
    return 0


def search(key: Key, kind: str) -> tuple[Candidate | None, list[Candidate]]:
    """The best candidate that is sound in all variants, if there is one, and all that were compiled, best first.

    Candidates are compiled in the order of what the model says at best, and no more of them once none can be better
    than the best one found. On a GPU all are compiled and timed.
    """
    best: Candidate | None = None
    tried: list[Candidate] = []
    deep_enough = set()
    order = sorted((_least_seconds(key, kind, blocks), -blocks.num_stages, blocks) for blocks in sizes(key))
    for least, _, blocks in order:
        if not aot.has_gpu() and (blocks[:3] in deep_enough or (best and best.modelled <= least)):
            continue
        candidate = _candidate(key, kind, blocks)
        if candidate is None:
            continue
        tried.append(candidate)
        if (best is None or candidate.rank < best.rank) and _sound_everywhere(key, kind, candidate):
            best = candidate
            if candidate.kernel.occupancy(aot.limits(kind)).bound != "shared memory":
                deep_enough.add(blocks[:3])  # fewer stages would make no room for another block
    return best, sorted(tried, key=lambda candidate: candidate.rank)


def _least_seconds(key: Key, kind: str, blocks: Blocks) -> float:
    """Modelled for a kernel with few registers beside its sums, and as shared memory only what it loads ahead."""
    mma, streamed = key.bytes_per_element == 2, blocks.block_q if key.kernel_pass == "dkv" else blocks.block_k
    hopeful = ptx.Kernel(
        name="hopeful",
        mosaic=key.backend == "mosaic",
        threads=32 * blocks.num_warps,
        shared_memory=2 * streamed * key.head_dim * key.bytes_per_element * (blocks.num_stages - 1),
        registers=min(255, int(_accumulators(key, blocks)) + FEWEST_OTHERS),
        mma_sync=int(mma and key.generation == "sm80"),
        wgmma=int(mma and key.generation == "sm90"),
    )
    return cost.modelled_seconds(
        of_key(CASE, key), kernel=hopeful, kind=kind, blocks=blocks, kernel_pass=key.kernel_pass
    )


def _candidate(key: Key, kind: str, blocks: Blocks) -> Candidate | None:
    """Compiled, and timed where there is a GPU; None if that cannot be."""
    case = of_key(CASE, key)
    try:
        kernel = compiled_kernel(key, kind, case, blocks)
    except (NotImplementedError, ValueError, jax.errors.JaxRuntimeError):  # too much shared memory, or too small
        return None
    if kernel.shared_memory > aot.limits(kind).shared_memory_per_block:
        return None
    modelled = cost.modelled_seconds(case, kernel=kernel, kind=kind, blocks=blocks, kernel_pass=key.kernel_pass)
    measured = _seconds(key, case, blocks) if aot.has_gpu() else None
    return Candidate(blocks=blocks, kernel=kernel, modelled=modelled, measured=measured)


def _sound_everywhere(key: Key, kind: str, candidate: Candidate) -> bool:
    return _sound(candidate.kernel) and all(
        _sound(compiled_kernel(key, kind, of_key(variant, key), candidate.blocks)) for variant in VARIANTS
    )


def _sound(kernel: ptx.Kernel) -> bool:
    return kernel.spills == 0 and not kernel.wgmma_serialised


def of_key(case: Case, key: Key) -> Case:
    """The case with the head size of the key."""
    return dataclasses.replace(case, head_dim=key.head_dim)


def sizes(key: Key) -> Iterator[Blocks]:
    """Block sizes worth compiling: those whose accumulators can fit into registers.

    In Mosaic kernels two warpgroups of 64 rows compute, and only the length of the side that is streamed is free.
    """
    half = key.bytes_per_element == 2
    if key.backend == "mosaic":
        if half and key.generation == "sm90" and key.head_dim <= 128:
            for other, num_stages in itertools.product((64, 128), (3, 2)):
                yield Blocks(*((other, 128) if key.kernel_pass == "dkv" else (128, other)), 12, num_stages)
        return
    owned: tuple[int, ...] = (64, 128) if half else (16, 32)
    streamed: tuple[int, ...] = (32, 64, 128) if half else (16, 32)
    if half and key.head_dim > 128:
        owned = (32, *owned)
    many_warps, many_stages = ((4, 8), (3, 2)) if half else ((4,), (2,))
    for own, other, warps, stages in itertools.product(owned, streamed, many_warps, many_stages):
        blocks = Blocks(*((other, own) if key.kernel_pass == "dkv" else (own, other)), warps, stages)
        if _accumulators(key, blocks) <= MOST_ACCUMULATORS[key.generation]:
            yield blocks


def _accumulators(key: Key, blocks: Blocks) -> float:
    """Numbers that a thread holds: sums of the rows that its block owns, and tiles of scores."""
    own = blocks.block_k if key.kernel_pass == "dkv" else blocks.block_q
    sums = own * key.head_dim * (2 if key.kernel_pass == "dkv" else 1)
    scores = blocks.block_q * blocks.block_k * (1 if key.kernel_pass == "forward" else 2)
    return (sums + scores) / (32 * blocks.num_warps)


def _program(key: Key, case: Case, blocks: Blocks, others: dict[Pass, Blocks]):
    """A function of q, k, v, segment ids and the output's gradient in which one pass has these blocks.

    Args:
        others: blocks of the passes that come before it; those of the table where none are given.
    """
    attention = importlib.import_module(MODULES[key.backend]).attention
    chosen = {**others, key.kernel_pass: blocks}

    def run(q_BTNH, k_BTKH, v_BTKH, segment_ids_BT, d_out_BTNH):
        def out_BTNH(q_BTNH, k_BTKH, v_BTKH):
            return attention(q_BTNH, k_BTKH, v_BTKH, case.request(segment_ids_BT), blocks=chosen).out_BTNH

        if key.kernel_pass == "forward":
            return out_BTNH(q_BTNH, k_BTKH, v_BTKH)
        # What is not asked for is not computed.
        gradients = jax.vjp(out_BTNH, q_BTNH, k_BTKH, v_BTKH)[1](d_out_BTNH)
        return gradients[0] if key.kernel_pass == "dq" else gradients[1:]

    return run


def compiled_kernel(key: Key, kind: str, case: Case, blocks: Blocks) -> ptx.Kernel:
    """The kernel of one pass, compiled with these blocks.

    Raises:
        NotImplementedError, ValueError, jax.errors.JaxRuntimeError: it cannot be.
    """
    program = _program(key, case, blocks, SMALL[key.backend])
    report = measure.compile_for(kind, program, case.shapes(_dtype(key)))
    (kernel,) = (kernel for kernel in report.kernels if pass_of(kernel.name) == key.kernel_pass)
    return kernel


def _seconds(key: Key, case: Case, blocks: Blocks) -> float:
    """On this GPU; with the passes before it, whose blocks are the same for all candidates."""
    q, k, v = case.arrays(dtype=_dtype(key))
    ids = jnp.asarray(case.segment_ids_BT())
    run = jax.jit(_program(key, case, blocks, {}))
    return measure.seconds({"it": lambda: run(q, k, v, ids, q)}, rounds=7)["it"]


def _dtype(key: Key) -> jnp.dtype:
    return next(dtype for dtype in DTYPES.values() if dtype.itemsize == key.bytes_per_element)


def _print(key: Key, kind: str, tried: Sequence[Candidate], count: int, found: Candidate | None) -> None:
    backend, generation, size, head_dim, kernel_pass = key
    taken = found.blocks if found else "none, for all spill somewhere"
    print(f"\n{backend}, {generation}, {size} bytes, head {head_dim}, {kernel_pass}: {count} compiled, taken {taken}")
    records = []
    for candidate in tried:
        blocks, kernel = candidate.blocks, candidate.kernel
        records.append(
            {
                "q x k": f"{blocks.block_q} x {blocks.block_k}",
                "warps": blocks.num_warps,
                "stages": blocks.num_stages,
                "registers": kernel.registers,
                "spills, B": kernel.spills,
                "shared, KiB": kernel.shared_memory / 1024,
                "blocks a core": kernel.occupancy(aot.limits(kind)).blocks,
                "MMA": kernel.mma_kind + (", serialised" if kernel.wgmma_serialised else ""),
                "modelled, us": candidate.modelled * 1e6,
                "measured, us": None if candidate.measured is None else candidate.measured * 1e6,
            }
        )
    print(table(records), flush=True)


def write(best: dict[Key, Blocks], file: Path = FILE) -> None:
    """Replaces the entries of these keys in the table; all others stay."""
    entries = read_table(file) | best
    with file.open("w", encoding="utf-8", newline="") as lines:
        writer = csv.writer(lines, lineterminator="\n")
        writer.writerows([(*Key._fields, *Blocks._fields), *((*key, *entries[key]) for key in sorted(entries))])


if __name__ == "__main__":
    sys.exit(main())
