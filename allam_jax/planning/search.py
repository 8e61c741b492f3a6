"""Searches meshes, remat policies and accumulation for the fastest layout of the same batch that fits.

Formulas rank all layouts in seconds. The task `plan` then compiles the best few and takes the compiler's figures.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping

from allam_jax.errors import UserError
from allam_jax.planning.gpu_cluster import Cluster
from allam_jax.planning.memory import argument_bytes
from allam_jax.planning.run_plan import RunPlan
from allam_jax.planning.workload import REMAT
from allam_jax.training.run_description import RunDescription

_SEARCHED = ("data", "fsdp", "tensor")  # the axes whose sizes are tried


def divisors(n: int) -> list[int]:
    """The divisors of n, ascending."""
    return [k for k in range(1, n + 1) if n % k == 0]


def meshes(cluster: Cluster, *, mesh: Mapping[str, int]) -> Iterator[dict[str, int]]:
    """All meshes of the cluster's size with `tensor` inside a node. Axes that are not searched stay as in `mesh`."""
    others = math.prod(size for axis, size in mesh.items() if axis not in _SEARCHED)
    for tensor in divisors(cluster.gpus_per_node):
        for fsdp in divisors(cluster.size // (tensor * others)):
            sizes = (cluster.size // (tensor * fsdp * others), fsdp, tensor)
            yield {**mesh, **dict(zip(_SEARCHED, sizes, strict=True))}


def layouts(run: RunDescription, *, cluster: Cluster) -> Iterator[tuple[RunDescription, dict[str, int]]]:
    """All layouts that the batch and the shapes of `run` allow, each with the exact bytes of the step's arguments."""
    for mesh in meshes(cluster, mesh=run.mesh):
        moved = dataclasses.replace(run, mesh=mesh)
        if run.batch_size % moved.batch_shards:
            continue
        try:
            arguments = argument_bytes(moved)
        except UserError:  # a parameter that this mesh does not divide
            continue
        for accumulation in divisors(run.batch_size // moved.batch_shards):
            for remat in REMAT:
                options = dataclasses.replace(run.options, remat=remat)
                yield dataclasses.replace(moved, accumulation=accumulation, options=options), arguments


def ranked(run: RunDescription, *, cluster: Cluster, tokens: float = 0.0) -> list[RunPlan]:
    """The plans of all layouts that fit by formula, the fastest first."""
    plans = [
        RunPlan(run=layout, cluster=cluster, tokens=tokens, arguments=arguments)
        for layout, arguments in layouts(run, cluster=cluster)
    ]
    return sorted((plan for plan in plans if plan.memory.fits), key=lambda plan: plan.time.total)


def changes(old: RunDescription, new: RunDescription) -> list[str]:
    """The config overrides `KEY=VALUE` that turn the layout of `old` into that of `new`."""
    found = [f"mesh.{axis}={new.mesh[axis]}" for axis in new.mesh if new.mesh[axis] != old.mesh[axis]]
    if new.options.remat != old.options.remat:
        found.append(f"compute.remat={new.options.remat}")
    if new.accumulation != old.accumulation:
        found.append(f"train.accumulation={new.accumulation}")
    return found


def does_not_fit(plan: RunPlan, *, plans: list[RunPlan]) -> UserError:
    """The error for a plan that does not fit. It names the nearest of `plans`, which fit: that with the fewest changes,
    and of several such the fastest."""
    run, memory = plan.run, plan.memory
    how = "" if plan.compiled else "by formula, which the compiler can contradict (config.plan.compile), "
    message = (
        f"{run.describe()} does not fit: {how}it needs {memory.total / 2**30:.2f} of {gib(memory.usable)} on each "
        f"{plan.cluster.gpu.name} (parameters {gib(memory.parameters)}, optimizer {gib(memory.optimizer)}, gradients "
        f"{gib(memory.gradients)}, activations {gib(memory.activations)}, temporary {gib(memory.temporary)})"
    )
    fitting = min(plans, key=lambda each: (len(changes(run, each.run)), each.time.total), default=None)
    if fitting is None:
        return UserError(
            f"{message}; no mesh, remat policy or accumulation of this batch fits on {plan.cluster.size} GPUs"
        )
    overrides = " ".join(f"--config.{change}" for change in changes(run, fitting.run))
    return UserError(
        f"{message}; the nearest that fits: {overrides} ({gib(fitting.memory.total)}, "
        f"{fitting.time.total:.2f} s a step)"
    )


def gib(size: float) -> str:
    """The text of a number of bytes, such as `12.3 GiB`."""
    return f"{size / 2**30:.1f} GiB"
