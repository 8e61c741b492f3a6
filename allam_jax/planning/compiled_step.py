"""Compiles the real train step for a described cluster, and reads memory, work and collectives from the program.

The step is that of the train task (`training/step.py`), lowered from shapes and shardings alone. XLA's CUDA compiler
makes the program of one GPU of the cluster. Nothing is allocated, and no GPU, driver or toolkit is needed.
"""

import dataclasses
import re

from allam_jax.errors import UserError
from allam_jax.parallel.gpus import GPUS
from allam_jax.parallel.mesh import make_mesh
from allam_jax.planning.collectives import Collective, collectives_of
from allam_jax.planning.gpu_cluster import Cluster
from allam_jax.planning.hlo import Module, parse_program
from allam_jax.planning.memory import Memory, argument_bytes, compiled_memory
from allam_jax.planning.step_work import Work, work_of
from allam_jax.planning.workload import attention_flops, workload_of
from allam_jax.training.run_description import RunDescription
from kernels import aot
from kernels.attention.blocks import MATMULS, pass_of

_MEMORY_LIMIT = "xla_gpu_memory_limit_slop_factor"
_SLOP = 95  # XLA's default, percent
_DESCRIBED_SHARE = 0.80  # of a described GPU's memory is XLA's limit; on a real GPU the limit is what JAX may use


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompiledStep:
    """The memory, work and communication of one GPU in a step, read from the compiled program."""

    memory: Memory
    argument_bytes: int  # as the compiler counts them
    work: tuple[Work, ...]
    collectives: tuple[Collective, ...]
    kernels: tuple[str, ...]  # names of the kernels that are opaque to XLA
    uncounted: tuple[str, ...]  # kernels of unknown operations; only their bytes take time
    seconds: float  # of compiling


def compile_step(run: RunDescription, *, cluster: Cluster) -> CompiledStep:
    """Compiles the step of `run` for `cluster` and reads the program.

    Raises:
        UserError: sizes do not fit together, wheels are missing, or the attention backend cannot serve the run.
    """
    if not cluster.gpu.target:
        raise UserError(
            f"{cluster.gpu.name}: the compiler has no description of it; set config.plan.compile=False for a plan from "
            "formulas alone"
        )
    try:
        devices = aot.topology(cluster.gpu.target, hosts=cluster.nodes, gpus_per_host=cluster.gpus_per_node)
    except aot.Unavailable as error:
        raise UserError(f"{error}; or set config.plan.compile=False for a plan from formulas alone") from None
    mesh = make_mesh(run.mesh, devices=devices)
    run.check_batch()
    try:
        lowered = run.make_step(mesh).lower(run.abstract_state(mesh), run.abstract_batch(mesh))
    except NotImplementedError as error:
        raise UserError(f"config.compute.attention = {run.options.attention!r}: {error}") from None
    limit = {_MEMORY_LIMIT: str(memory_limit(run, cluster=cluster))}
    report = aot.compile_report(lowered, kernels=False, options=limit)
    module = parse_program(report.hlo_text)
    work, kernels, uncounted = counted_work(module, run=run)
    return CompiledStep(
        memory=compiled_memory(run, cluster=cluster, module=module, temp_bytes=report.temp_bytes),
        argument_bytes=report.argument_bytes,
        work=work,
        collectives=tuple(collectives_of(module, mesh=mesh, gpus_per_node=cluster.gpus_per_node)),
        kernels=kernels,
        uncounted=uncounted,
        seconds=report.seconds,
    )


def memory_limit(run: RunDescription, *, cluster: Cluster) -> int:
    """The scheduling limit to give XLA, in percent, so that it schedules for a described GPU as for a real one.

    XLA lets collectives run beside other work only while temporary memory stays below `slop * (limit - arguments)`.
    The limit of a described GPU is lower than that of a real one with `usable_share` of its memory.
    """
    arguments = sum(argument_bytes(run).values())
    described = _DESCRIBED_SHARE * GPUS[cluster.gpu.target].memory_bytes - arguments
    if described <= 0:  # no memory is left for a step: it does not fit with any schedule
        return _SLOP
    return max(1, round(_SLOP * (cluster.usable_bytes - arguments) / described))


def counted_work(module: Module, *, run: RunDescription) -> tuple[tuple[Work, ...], tuple[str, ...], tuple[str, ...]]:
    """The program's work with the operations of attention kernels filled in, the names of all kernels, and the names
    of the kernels whose operations are unknown."""
    work, names, uncounted = [], set(), set()
    for piece in work_of(module):
        if piece.kind == "kernel":
            # In the path the kernel's name comes before that of JAX's primitive, such as pallas_call or mpmd_map.
            path = [re.sub(r"[.\d]+$", "", part) for part in piece.source.split("/")]
            name = next(filter(pass_of, path), path[-1])
            names.add(name)
            if kernel_pass := pass_of(name):
                flops = attention_flops(workload_of(run), matmuls=MATMULS[kernel_pass])
                piece = dataclasses.replace(piece, flops=flops)
            else:
                uncounted.add(name)
        work.append(piece)
    return tuple(work), tuple(sorted(names)), tuple(sorted(uncounted))
