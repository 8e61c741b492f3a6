"""What a compile for a described GPU says of the attention kernels, ours and others', without running them.

    python -m kernels.workshop.compiled                       # the kernels, for all GPUs described
    python -m kernels.workshop.compiled --json numbers.json   # the same, and a file
    python -m kernels.workshop.compiled --kinds h100 --cases 7b_t4096 --subjects triton tokamax_triton

Registers, spills, shared memory, tensor-core instructions and memory are the compiler's. Blocks per core are computed
from these; loads (from the L2 cache and memory) are modelled from the block sizes. Speed and numbers on hardware are
`gpu_report`'s.
"""

import argparse
import platform
import sys
from collections.abc import Sequence
from pathlib import Path

import jax

from allam_jax.files import json_text
from allam_jax.report.markdown import table
from kernels import aot
from kernels.attention.blocks import blocks_for, pass_of
from kernels.workshop import measure
from kernels.workshop.cases import REAL_CASES, Case
from kernels.workshop.subjects import KERNELS, SUBJECTS, Subject
from kernels.workshop.work import loaded_bytes

# For the compiler, shapes that differ in batch, length or number of heads only are the same kernel.
DEFAULT_CASES = ("7b_t4096_whole", "7b_t4096", "7b_t4096_dropout", "8b_t8192", "small_h64_whole", "small_h64")
COMPILED = (
    "Compiled, not run: registers, spills, shared memory, instructions in the text and memory are the compiler's; "
    "blocks on a core are computed from them, loads are modelled. Speed and numbers on hardware are not known."
)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; gives the exit code."""
    names = [case.name for case in REAL_CASES]
    parser = argparse.ArgumentParser(
        prog="python -m kernels.workshop.compiled", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--cases", nargs="+", choices=names, default=DEFAULT_CASES, help="shapes; default: six of them")
    parser.add_argument("--subjects", nargs="+", choices=SUBJECTS, default=KERNELS, help="backends of ours and peers")
    parser.add_argument("--kinds", nargs="+", choices=list(aot.TARGETS), default=list(aot.TARGETS), help="GPUs")
    parser.add_argument("--json", type=Path, help="write all records to this file")
    args = parser.parse_args(argv)
    cases = [case for case in REAL_CASES if case.name in args.cases]
    subjects = [Subject(name) for name in args.subjects]
    try:
        records = [record for kind in args.kinds for case in cases for record in _records(kind, case, subjects)]
    except aot.Unavailable as error:
        print(f"kernels.workshop.compiled: {error}", file=sys.stderr)
        return 1
    print(f"\n{COMPILED}")
    if args.json:
        about = {"jax": jax.__version__, "python": platform.python_version(), "what": COMPILED}
        args.json.write_text(json_text({**about, "records": records}, indent=1) + "\n", encoding="utf-8")
    return 0


def _records(kind: str, case: Case, subjects: Sequence[Subject]) -> list[dict]:
    """Prints and gives what a compile for the described GPU says of every subject."""
    print(f"\n{kind} ({aot.limits(kind).capability}), {case.name}, bfloat16, forward and backward")
    records = [record for subject in subjects for record in _compiled(kind, case, subject)]
    print(table([_shown(record) for record in records]), flush=True)
    return records


def _compiled(kind: str, case: Case, subject: Subject) -> list[dict]:
    """A record for each kernel with matmuls of one program, or one that says why there is none."""
    about: dict[str, object] = {"gpu": kind, "case": case.name, "subject": subject.name}
    # What has no backward pass is shown with its forward pass alone.
    backward = subject.refuses(case, backward=True) is None
    if reason := subject.refuses(case, backward=backward):
        return [{**about, "refused": reason}]
    try:
        program = subject.program(case, backward=backward)
        report = measure.compile_for(kind, program, case.shapes(subject.dtype))
    except (NotImplementedError, ExceptionGroup, jax.errors.JaxRuntimeError) as error:
        return [{**about, "refused": measure.first_line(error)}]
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
        for occupancy in [kernel.occupancy(aot.limits(kind))]
    ] or [{**about, "refused": "no kernel with tensor-core instructions"}]


def _loads(kind: str, case: Case, subject: Subject, kernel: str) -> int | None:
    """Bytes that the kernel's blocks move; known for kernels of ours, whose block sizes we know."""
    kernel_pass = pass_of(kernel) if subject.ours else None
    if kernel_pass is None:
        return None
    size = subject.dtype.itemsize
    blocks = blocks_for(subject.name, aot.limits(kind).capability, size, case.head_dim, kernel_pass)
    return loaded_bytes(case, blocks=blocks, kernel_pass=kernel_pass, bytes_per_element=size)


def _shown(record: dict) -> dict:
    if "refused" in record:
        return {"": record["subject"], "kernel": record["refused"]}
    mma = "+".join(f"{record[key]} {name}" for key, name in (("wgmma", "wgmma"), ("mma_sync", "mma")) if record[key])
    loads = record["modelled_load_bytes"]
    return {
        "": record["subject"] + ("" if record["backward"] else " (forward)"),
        **{key: record[key] for key in ("kernel", "threads", "registers")},
        "spills, B": record["spill_bytes"],
        "shared, KiB": f"{record['shared_memory'] / 1024:.1f}",
        "blocks a core": f"{record['blocks_per_core']} ({record['occupancy']:.0%}, {record['bound']})",
        "MMA": mma + (", serialised" if record["wgmma_serialised"] else ""),
        "loads, GiB": f"{loads / 2**30:.2f}" if loads else "",
        "temp, MiB": f"{record['temp_bytes'] / 2**20:.1f}",
    }


if __name__ == "__main__":
    sys.exit(main())
