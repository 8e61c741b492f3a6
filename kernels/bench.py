"""Measures attention kernels: on a GPU their speed, without one what the compiler says of them.

    python -m kernels.bench                       # this machine's GPU, or else compile for those described
    python -m kernels.bench --json numbers.json   # the same, and a file to send
    python -m kernels.bench --aot --kinds h100 --cases 7b_t4096 --subjects triton tokamax_triton

On a GPU: seconds of a call by wall clock, queued and waited for, medians of turns taken in alternation after a warm-up;
TFLOP/s count the matmuls on visible pairs only. Without one, nothing runs: registers, spills, shared memory,
tensor-core instructions and memory come from a compile for the described GPU, blocks per core are computed from these,
loads (from the L2 cache and memory) are modelled from the block sizes, and speed and correct numbers on hardware are
not known.
"""

import argparse
import json
import platform
import sys
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp

from kernels import aot, device
from kernels.attention import measure, real_shapes
from kernels.attention.blocks import blocks_for
from kernels.attention.cases import Case

# For the compiler, shapes that differ in batch, length or number of heads only are the same kernel.
AOT_CASES = ("7b_t4096_whole", "7b_t4096", "7b_t4096_dropout", "8b_t8192", "small_h64_whole", "small_h64")
MIB, GIB = 2**20, 2**30
COLUMNS = (
    "",
    "kernel",
    "threads",
    "registers",
    "spills, B",
    "shared, KiB",
    "blocks a core",
    "MMA",
    "loads, GiB",
    "temp, MiB",
)
MEASURED = "Measured: seconds on this GPU. TFLOP/s: matmuls on visible pairs, 2 forward and 5 backward, over seconds."
COMPILED = (
    "Compiled, not run: registers, spills, shared memory, instructions in the text and memory are the compiler's; "
    "blocks on a core are computed from them, loads are modelled. Speed and numbers on hardware are not known."
)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; gives the exit code."""
    names = [case.name for case in real_shapes.REAL_CASES]
    parser = argparse.ArgumentParser(prog="python -m kernels.bench", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--cases", nargs="+", choices=names, help="shapes; default: all, or six without a GPU")
    parser.add_argument(
        "--subjects", nargs="+", help="backends of ours and peers; default: all, or without a GPU all that are kernels"
    )
    parser.add_argument(
        "--kinds", nargs="+", choices=list(aot.TARGETS), default=list(aot.TARGETS), help="GPUs to compile for"
    )
    parser.add_argument("--aot", action="store_true", help="compile only, also where there is a GPU")
    parser.add_argument("--json", type=Path, help="write all records to this file")
    args = parser.parse_args(argv)

    compile_only = args.aot or not aot.has_gpu()
    cases = [c for c in real_shapes.REAL_CASES if c.name in (args.cases or (AOT_CASES if compile_only else names))]
    try:
        subjects = measure.subjects(args.subjects or (measure.KERNELS if compile_only else None))
        if compile_only:
            head, records = COMPILED, [row for kind in args.kinds for row in compiled(kind, cases, subjects)]
        else:
            head, records = MEASURED, timed(cases, subjects)
    except (aot.Unavailable, ValueError) as error:
        print(f"kernels.bench: {error}", file=sys.stderr)
        return 1
    print(f"\n{head}")
    if args.json:
        about = {"jax": jax.__version__, "python": platform.python_version(), "what": head}
        args.json.write_text(json.dumps({**about, "records": records}, indent=1) + "\n", encoding="utf-8")
    return 0


def timed(cases: Sequence[Case], subjects: Sequence[measure.Subject]) -> list[dict]:
    """Prints and gives seconds and TFLOP/s of every subject on this machine's GPU."""
    target = device.of_device(jax.devices()[0])
    if target.platform != "cuda":
        raise aot.Unavailable('there is an NVIDIA driver, but JAX cannot use it: pip install "jax[cuda13]"')
    print(f"{target.kind} ({target.capability}), jax {jax.__version__}")
    records = []
    for case in cases:
        for backward in (False, True):
            functions, refused = _ready(case, subjects, backward=backward)
            work = real_shapes.flops(case, backward=False)
            work += real_shapes.flops(case, backward=True) if backward else 0
            title = f"\n{case.name}, {'forward and backward' if backward else 'forward'}"
            print(f"{title}: {work / 1e12:.3f} TFLOP\n| | ms | TFLOP/s |\n|---|---|---|")
            for name, value in measure.seconds(functions).items():
                print(f"| {name} | {value * 1e3:.3f} | {work / value / 1e12:.1f} |", flush=True)
                record = {"seconds": value, "tflops": work / value / 1e12}
                records.append({"gpu": target.kind, "case": case.name, "backward": backward, "subject": name, **record})
            for name, reason in refused.items():
                print(f"| {name} | {reason} | |")
                records.append(
                    {"gpu": target.kind, "case": case.name, "backward": backward, "subject": name, "refused": reason}
                )
    return records


def _ready(case: Case, subjects: Sequence[measure.Subject], *, backward: bool):
    """Compiled calls on arrays that lie on the GPU, and why the others cannot serve."""
    functions, refused = {}, {}
    q, k, v = case.arrays()
    ids = jnp.asarray(case.segment_ids_BT())
    for subject in subjects:
        reason = subject.refuses(case, backward=backward)
        if reason is None:
            arguments = (*(a.astype(subject.dtype) for a in (q, k, v)), ids, q.astype(subject.dtype))
            run = jax.jit(measure.program(subject, case, backward=backward))
            try:
                jax.block_until_ready(run(*arguments))
            except (NotImplementedError, jax.errors.JaxRuntimeError) as error:  # a kernel too large, memory that ends
                reason = _one_line(error)
            else:
                functions[subject.name] = lambda run=run, arguments=arguments: run(*arguments)
        if reason is not None:
            refused[subject.name] = reason
    return functions, refused


def compiled(kind: str, cases: Sequence[Case], subjects: Sequence[measure.Subject]) -> list[dict]:
    """Prints and gives what a compile for the described GPU says of every subject that is made of kernels."""
    records = []
    for case in cases:
        title = f"\n{kind} ({aot.limits(kind).capability}), {case.name}, bfloat16, forward and backward"
        print(f"{title}\n| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
        for subject in subjects:
            for record in _compiled(kind, case, subject):
                print(f"| {' | '.join(_cells(record))} |", flush=True)
                records.append(record)
    return records


def _compiled(kind: str, case: Case, subject: measure.Subject) -> list[dict]:
    """A record for each kernel with matmuls of one program, or one that says why there is none."""
    about: dict[str, object] = {"gpu": kind, "case": case.name, "subject": subject.name}
    # What has no backward pass is shown with its forward pass alone.
    backward = subject.refuses(case, backward=True) is None
    if reason := subject.refuses(case, backward=backward):
        return [{**about, "refused": reason}]
    run = measure.program(subject, case, backward=backward)
    try:
        report = measure.compile_for(kind, run, measure.shapes(case, subject.dtype))
    except (NotImplementedError, ExceptionGroup, jax.errors.JaxRuntimeError) as error:
        return [{**about, "refused": _one_line(error)}]
    about |= {"backward": backward, "temp_bytes": report.temp_bytes}
    return [
        {
            **about,
            "kernel": kernel.name,
            "grid": kernel.grid,
            "threads": kernel.threads,
            "registers": kernel.registers,
            "spill_bytes": kernel.spills,
            "shared_memory": kernel.shared_memory,
            "mma_sync": kernel.mma_sync,
            "wgmma": kernel.wgmma,
            "wgmma_serialised": kernel.wgmma_serialised,
            "blocks_per_core": occupancy.blocks,
            "occupancy": occupancy.share,
            "bound": occupancy.bound,
            "modelled_load_bytes": _loads(kind, case, subject, kernel.name),
        }
        for kernel in report.kernels
        if kernel.tensor_macs
        for occupancy in [aot.occupancy(kernel, kind)]
    ] or [{**about, "refused": "no kernel with tensor-core instructions"}]


def _loads(kind: str, case: Case, subject: measure.Subject, kernel: str) -> int | None:
    """Bytes that the kernel's blocks move; known for kernels of ours, whose block sizes we know."""
    kernel_pass = measure.pass_of(kernel) if subject.ours else None
    if kernel_pass is None:
        return None
    size = subject.dtype.itemsize
    blocks = blocks_for(subject.name, aot.limits(kind).capability, size, case.head_dim, kernel_pass)
    return real_shapes.loaded_bytes(case, blocks=blocks, kernel_pass=kernel_pass, bytes_per_element=size)


def _cells(record: dict) -> list[str]:
    if "refused" in record:
        return [record["subject"], record["refused"], *[""] * (len(COLUMNS) - 2)]
    mma = "+".join(f"{record[key]} {name}" for key, name in (("wgmma", "wgmma"), ("mma_sync", "mma")) if record[key])
    mma += ", serialised" if record["wgmma_serialised"] else ""
    return [
        record["subject"] + ("" if record["backward"] else " (forward)"),
        record["kernel"],
        str(record["threads"]),
        str(record["registers"]),
        str(record["spill_bytes"]),
        f"{record['shared_memory'] / 1024:.1f}",
        f"{record['blocks_per_core']} ({record['occupancy']:.0%}, {record['bound']})",
        mma,
        f"{record['modelled_load_bytes'] / GIB:.2f}" if record["modelled_load_bytes"] else "",
        f"{record['temp_bytes'] / MIB:.1f}",
    ]


def _one_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0][:160]


if __name__ == "__main__":
    sys.exit(main())
