"""Compiles for GPUs that are not there, and reads from the result what can be known without running it.

XLA's CUDA compiler needs a description of the GPU (`targets/`), the plugin's wheels and NVIDIA's `ptxas`; no GPU, no
driver, no CUDA toolkit. A report has, of every kernel, its launch, shared memory, registers, spills and tensor-core
instructions, and of the whole program its memory and optimised HLO. Speed and numbers on hardware it has not.

    devices = topology("h100", hosts=8, gpus_per_host=8)
    with jax.set_mesh(jax.sharding.Mesh(np.array(devices), ("data",))):
        report = compile_report(jax.jit(f).lower(*shapes))
"""

import contextlib
import dataclasses
import functools
import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
from jax.experimental import topologies

from kernels import ptx

TARGETS = {path.stem: path for path in sorted((Path(__file__).parent / "targets").glob("*.txtpb"))}
"""Kind of GPU -> its description."""

INSTALL = "pip install -r requirements-aot.txt"

_GPU_FILES = ("/dev/nvidia0", "/dev/dxg")  # the driver's, under Linux and under WSL


class Unavailable(RuntimeError):
    """This machine cannot compile for described GPUs; the message says in one line what to do."""


@functools.cache
def limits(kind: str) -> ptx.Limits:
    """The limits in a GPU's description. Raises ValueError for an unknown kind."""
    text = _description(kind)

    def number(field: str) -> int:
        found = re.search(rf"\b{field}: (\d+)", text)
        assert found, f"{TARGETS[kind]}: no {field}"
        return int(found[1])

    minor = re.search(r"cuda_compute_capability \{[^}]*minor: (\d+)", text)
    return ptx.Limits(
        capability=f"sm{number('cuda_compute_capability { major')}{minor[1] if minor else 0}",
        shared_memory_per_block=number("shared_memory_per_block_optin"),
        shared_memory_per_core=number("shared_memory_per_core"),
        registers_per_core=number("registers_per_core_limit"),
        threads_per_core=number("threads_per_core_limit"),
    )


def has_gpu() -> bool:
    """Whether this machine has NVIDIA's driver, without starting JAX's search for devices."""
    return any(map(os.path.exists, _GPU_FILES))


def topology(kind: str, *, slices: int = 1, hosts: int = 1, gpus_per_host: int = 1) -> list[jax.Device]:
    """Devices of a `kind` in `TARGETS` to put in a mesh and compile for; nothing can be placed on them.

    Raises:
        ValueError: an unknown kind.
        Unavailable: wheels are missing, or JAX has looked for devices before it could be told that there is no GPU.
    """
    description = _description(kind)
    _require_wheels()
    _skip_the_search_for_a_gpu()
    try:
        return topologies.get_topology_desc(
            platform="cuda", target_config=description, topology=f"{slices}x{hosts}x{gpus_per_host}"
        ).devices
    except NotImplementedError as error:
        raise Unavailable(
            "JAX started without its CUDA plugin: set JAX_PLATFORMS=cpu before Python starts, to compile for a GPU "
            "on a machine without one"
        ) from error


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompileReport:
    """What a program needs of each device.

    Attributes:
        argument_bytes, temp_bytes: of one device.
        hlo_text: after all of XLA's passes, for one device.
        seconds: the time of the compile.
        kernels: in the order of their names; empty if they were not asked for.
    """

    argument_bytes: int
    temp_bytes: int
    hlo_text: str = dataclasses.field(repr=False)
    seconds: float
    kernels: tuple[ptx.Kernel, ...] = ()


def compile_report(
    lowered: jax.stages.Lowered, *, kernels: bool = True, options: dict[str, Any] | None = None
) -> CompileReport:
    """Compiles a program that was lowered for devices of `topology`, with XLA's `options`.

    `kernels` asks to read the kernels as well; a large program compiles quicker without.

    Raises:
        Unavailable: `ptxas` is missing.
        RuntimeError: a Mosaic kernel of this program was compiled in this process before, outside of this function.
    """
    if not kernels:
        return _report(lowered, options or {})
    assembler = _ptxas()
    with tempfile.TemporaryDirectory(prefix="aot-") as folder, _no_compilation_cache():
        xla, mosaic = Path(folder, "xla"), Path(folder, "mosaic")
        mosaic.mkdir()
        with _mosaic_dumps(mosaic):
            # From jax 0.11 the assembly text is dumped only with the last one.
            dump = {"xla_dump_to": str(xla), "xla_dump_hlo_as_text": True, "xla_dump_emitter_re": "ptx"}
            report = _report(lowered, dump | (options or {}))
        read = ptx.read_dumps(xla, mosaic, hlo_text=report.hlo_text, ptxas=lambda file: _assemble(assembler, file))
        return dataclasses.replace(report, kernels=read)


def _report(lowered: jax.stages.Lowered, options: dict[str, Any]) -> CompileReport:
    start = time.perf_counter()
    compiled = lowered.compile(compiler_options=options)
    seconds = time.perf_counter() - start
    memory, text = compiled.memory_analysis(), compiled.as_text()
    assert memory is not None
    assert text is not None
    return CompileReport(
        argument_bytes=memory.argument_size_in_bytes,
        temp_bytes=memory.temp_size_in_bytes,
        hlo_text=text,
        seconds=seconds,
    )


def _description(kind: str) -> str:
    if kind not in TARGETS:
        raise ValueError(f"GPU kind {kind!r} is not described; expected one of {', '.join(TARGETS)}")
    return TARGETS[kind].read_text(encoding="utf-8")


def _require_wheels() -> None:
    if not any(_in_namespace("jax_plugins", name) for name in ("xla_cuda13", "xla_cuda12")):
        raise Unavailable(f"JAX's CUDA plugin is not installed; compiling for a GPU needs it: {INSTALL}")


def _skip_the_search_for_a_gpu() -> None:
    """Unless told to leave CUDA out, the plugin asks for the driver and all of CUDA's libraries before it registers."""
    if not jax.config.jax_platforms and not has_gpu():  # type: ignore[attr-defined]
        jax.config.update("jax_platforms", "cpu")


def _in_namespace(package: str, *names: str) -> Path | None:
    """Folder `names` in any of the places that a namespace package lies in."""
    spec = importlib.util.find_spec(package)
    for place in (spec.submodule_search_locations or ()) if spec else ():
        if (path := Path(place, *names)).exists():
            return path
    return None


def _ptxas() -> str:
    found = (
        _in_namespace("nvidia", "cu13", "bin", "ptxas")
        or _in_namespace("nvidia", "cuda_nvcc", "bin", "ptxas")
        or shutil.which("ptxas")
    )
    if not found:
        raise Unavailable(f"ptxas, NVIDIA's assembler, is not installed; counting registers needs it: {INSTALL}")
    return str(found)


def _assemble(ptxas: str, file: Path) -> str:
    """What `ptxas -v` says of a PTX file, for the architecture that the file names."""
    arch = re.search(r"^\.target (\w+)", file.read_text(), re.MULTILINE)
    assert arch, f"{file}: no .target"
    command = [ptxas, "-v", f"-arch={arch[1]}", str(file), "-o", str(file.with_suffix(".cubin"))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"ptxas cannot assemble {file.name}: {done.stderr.strip()}")
    return done.stderr


@contextlib.contextmanager
def _mosaic_dumps(folder: Path):
    """Mosaic's compiler takes no options but environment variables, read at every compile."""
    before = os.environ.get("MOSAIC_GPU_DUMP_TO")
    os.environ["MOSAIC_GPU_DUMP_TO"] = str(folder)
    try:
        yield
    finally:
        if before is None:
            del os.environ["MOSAIC_GPU_DUMP_TO"]
        else:
            os.environ["MOSAIC_GPU_DUMP_TO"] = before


@contextlib.contextmanager
def _no_compilation_cache():
    """A program from the cache is not compiled, and so leaves no dump."""
    before = jax.config.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)
