"""What a compiled kernel asks of a GPU, read from the assembly text (PTX) and from the compilers' dumps."""

import dataclasses
import math
import re
from collections.abc import Callable
from pathlib import Path

REGISTERS_PER_GRAIN = 256  # a warp's registers are given out in units of this, and warps in units of four
WARPS_PER_GRAIN = 4
BLOCKS_PER_CORE = 32
SHARED_MEMORY_OF_A_BLOCK = 1024  # kept by the system, beside what a block asks for

_LAUNCH = re.compile(
    r"k(?:Custom)?Kernel\s+\[[^]]*\]\s+(?P<name>\S+)\s+grid: \[(?P<grid>[^]]*)\]\s+threads: \[(?P<threads>[^]]*)\]"
    r"\s+shared_memory: (?P<shared>\d+)"
)
_MOSAIC_LAUNCH = re.compile(
    r"gpu\.launch .*?blocks\([^)]*\) in \((?P<grid>[^)]*)\) threads\([^)]*\) in \((?P<threads>[^)]*)\)"
    r"(?: dynamic_shared_memory_size (?P<shared>%\S+))?"
)
_MOSAIC_CALL = re.compile(
    # The kernel itself follows as MLIR bytecode, whose strings end in a zero byte.
    r'custom_call_target="mosaic_gpu_v2".*?kernel_hash = "(?P<hash>(?:[^"\\]|\\.)*)"'
    r".*?\\00(?!stable_)(?P<name>\w+)_mosaic_gpu\\00"  # stable_mosaic_gpu is the name of the dialect
)
_ENTRY = re.compile(r"\.visible \.entry (\w+)")
_MMA = re.compile(r"\b(?P<kind>mma\.sync|wgmma\.mma_async)\.\S*?m(?P<m>\d+)n(?P<n>\d+)k(?P<k>\d+)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """What one kind of GPU offers to kernels: bytes, registers of 32 bits, threads."""

    capability: str  # "sm80", "sm90"
    shared_memory_per_block: int
    shared_memory_per_core: int
    registers_per_core: int
    threads_per_core: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Occupancy:
    """How many blocks of a kernel fit on one core (SM), and what keeps out the next one."""

    blocks: int
    share: float  # of the warps that a core can hold
    bound: str  # "registers", "shared memory", "threads" or "blocks"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kernel:
    """One kernel of a program.

    Attributes:
        name: of the entry point.
        mosaic: made by Pallas' Mosaic compiler; otherwise by XLA or Triton.
        arch: that it was assembled for, such as "sm_90a".
        grid: blocks along x, y, z.
        threads: of a block.
        shared_memory: bytes of a block, static and dynamic.
        registers: of a thread at launch.
        spills: bytes of a thread that are stored to or loaded from memory for want of registers.
        mma_sync, wgmma: tensor-core instructions in the text, each counted once, whatever loop it is in.
        wgmma_serialised: ptxas has put a wait behind every wgmma, for want of registers or of a provable order.
        tensor_macs: multiply-adds of a block if all its warps run each of these once. With Triton they do.
    """

    name: str
    mosaic: bool = False
    arch: str = ""
    grid: tuple[int, int, int] = (1, 1, 1)
    threads: int
    shared_memory: int
    registers: int
    spills: int = 0
    mma_sync: int = 0
    wgmma: int = 0
    wgmma_serialised: bool = False
    tensor_macs: int = 0

    @property
    def mma_kind(self) -> str:
        """The tensor-core instructions that it uses: "wgmma", "mma", both, or "none"."""
        kinds = [name for name, count in (("wgmma", self.wgmma), ("mma", self.mma_sync)) if count]
        return "+".join(kinds) or "none"

    def occupancy(self, limits: Limits) -> Occupancy:
        """Blocks on one core. Source: NVIDIA's occupancy calculator (CUDA C++ Programming Guide, 5.2.3)."""
        warps = math.ceil(self.threads / 32)
        registers_of_a_warp = math.ceil(max(self.registers, 1) * 32 / REGISTERS_PER_GRAIN) * REGISTERS_PER_GRAIN
        resident_warps = limits.registers_per_core // registers_of_a_warp // WARPS_PER_GRAIN * WARPS_PER_GRAIN
        fits = {
            "registers": resident_warps // warps,
            "shared memory": limits.shared_memory_per_core // (self.shared_memory + SHARED_MEMORY_OF_A_BLOCK),
            "threads": limits.threads_per_core // (warps * 32),
            "blocks": BLOCKS_PER_CORE,
        }
        bound = min(fits, key=lambda name: fits[name])
        return Occupancy(blocks=fits[bound], share=fits[bound] * warps * 32 / limits.threads_per_core, bound=bound)


@dataclasses.dataclass(frozen=True)
class _Launch:
    grid: tuple[int, int, int]
    threads: int
    shared_memory: int


# Mosaic compiles a kernel once per process and then leaves no dump: what was read the first time, by the kernel's hash.
_mosaic_kernels: dict[str, Kernel] = {}


def read_dumps(xla: Path, mosaic: Path, *, hlo_text: str, ptxas: Callable[[Path], str]) -> tuple[Kernel, ...]:
    """The kernels of a program, by name. Raises RuntimeError for a kernel without a dump.

    Args:
        xla, mosaic: folders with the dumps of XLA (text of the thunks, PTX) and of Mosaic (PTX, text of its passes).
        hlo_text: the optimised program, which names the Mosaic kernels.
        ptxas: gives the words of `ptxas -v` on a PTX file.
    """
    launches: dict[str, _Launch] = {}
    for file in xla.glob("*thunk_sequence.txt"):
        launches |= {m["name"]: _launch(m["grid"], m["threads"], m["shared"]) for m in _LAUNCH.finditer(_text(file))}
    kernels = []
    for file in sorted(xla.glob("*.ptx")):
        if _entries(file):
            kernels += _kernels_of(file, ptxas, launches, mosaic=False)
    if missing := launches.keys() - {kernel.name for kernel in kernels}:
        raise RuntimeError(f"XLA launches kernels whose assembly text it did not dump: {', '.join(sorted(missing))}")
    dumped = []
    for file in sorted(mosaic.glob("*.ptx"), key=lambda file: file.stat().st_mtime_ns):
        launch = _mosaic_launch(file.with_suffix(".mlir-passes.log"))
        dumped += _kernels_of(file, ptxas, {name: launch for name in _entries(file)}, mosaic=True)
    kernels += _remember_mosaic(dumped, hlo_text)
    return tuple(sorted(kernels, key=lambda kernel: kernel.name))


def _text(file: Path) -> str:
    return file.read_text(encoding="utf-8")


def _entries(file: Path) -> list[str]:
    return _ENTRY.findall(_text(file))


def _launch(grid: str, threads: str, shared: str) -> _Launch:
    x, y, z = map(int, grid.split(","))
    return _Launch((x, y, z), math.prod(map(int, threads.split(","))), int(shared))


def _mosaic_launch(passes: Path) -> _Launch:
    """From the first `gpu.launch` of the log, whose operands are constants that are defined above it."""
    constants: dict[str, int] = {}
    with passes.open(encoding="utf-8") as lines:
        for line in lines:
            if found := re.search(r"(%\S+) = arith\.constant (\d+) : (?:index|i32)", line):
                constants[found[1]] = int(found[2])
            elif found := _MOSAIC_LAUNCH.search(line):
                sizes = [
                    [constants[operand] for operand in re.findall(r"= (%\w+)", found[axes])]
                    for axes in ("grid", "threads")
                ]
                x, y, z = sizes[0]
                shared = constants[found["shared"]] if found["shared"] else 0
                return _Launch((x, y, z), math.prod(sizes[1]), shared)
    raise RuntimeError(f"{passes.name}: no gpu.launch in Mosaic's log; its format has changed")


def _kernels_of(file: Path, ptxas, launches: dict[str, _Launch], *, mosaic: bool) -> list[Kernel]:
    words = ptxas(file)
    kernels = []
    for part in re.split(r"(?=\.visible \.entry )", _text(file))[1:]:
        (name,) = _ENTRY.findall(part)
        if name not in launches:  # compiled, but not in the program
            continue
        launch = launches[name]
        said = re.search(rf"entry function '{name}' for '(\w+)'(.*?)(?=Compiling entry|\Z)", words, re.DOTALL)
        if said is None:
            raise RuntimeError(f"ptxas says nothing of {name}: {words}")

        def number(pattern: str, said=said) -> int:
            found = re.search(pattern, said[2])
            return int(found[1]) if found else 0

        # Multiply-adds of each instruction, of a warp (mma) or of a warpgroup (wgmma).
        macs: dict[str, list[int]] = {"mma.sync": [], "wgmma.mma_async": []}
        for m in _MMA.finditer(part):
            macs[m["kind"]].append(int(m["m"]) * int(m["n"]) * int(m["k"]))
        mma, wgmma = macs.values()
        static = 0 if mosaic else number(r"(\d+) bytes smem")  # Mosaic's static byte stands for the dynamic ones
        kernels.append(
            Kernel(
                name=name,
                mosaic=mosaic,
                arch=said[1],
                grid=launch.grid,
                threads=launch.threads,
                shared_memory=launch.shared_memory + static,
                registers=number(r"Used (\d+) registers"),
                spills=number(r"(\d+) bytes spill stores") + number(r"(\d+) bytes spill loads"),
                mma_sync=len(mma),
                wgmma=len(wgmma),
                wgmma_serialised=bool(re.search(rf"wgmma\.mma_async instructions are serialized.*'{name}'", words)),
                tensor_macs=sum(mma) * launch.threads // 32 + sum(wgmma) * launch.threads // 128,
            )
        )
    return kernels


def _remember_mosaic(dumped: list[Kernel], hlo_text: str) -> list[Kernel]:
    """The Mosaic kernels of the program: those dumped now and those that an earlier compile dumped.

    Both lists are in the order of the schedule, in which Mosaic compiles.
    """
    called = {m["hash"]: m["name"] for m in _MOSAIC_CALL.finditer(hlo_text)}
    unknown = {key: name for key, name in called.items() if key not in _mosaic_kernels}
    if [f"{name}_mosaic_gpu_kernel" for name in unknown.values()] != [kernel.name for kernel in dumped]:
        raise RuntimeError(
            f"Mosaic dumped {[kernel.name for kernel in dumped]} for the kernels {list(unknown.values())}: one was "
            "compiled in this process before; compile each program first with compile_report"
        )
    for (key, name), kernel in zip(unknown.items(), dumped, strict=True):
        _mosaic_kernels[key] = dataclasses.replace(kernel, name=name)
    return [_mosaic_kernels[key] for key in called]
