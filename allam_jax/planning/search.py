"""Looks for a layout of the same batch that fits and is fast: meshes, remat policies, accumulation (micro-batches).

Formulas rank all of them, which takes seconds; the task then compiles the best few and lets the compiler decide.
"""

import dataclasses
from collections.abc import Iterator

from allam_jax.errors import UserError
from allam_jax.planning.gpu_cluster import Cluster
from allam_jax.planning.memory import argument_bytes
from allam_jax.planning.run_plan import Energy, Plan, analytic_plan
from allam_jax.planning.workload import REMAT
from allam_jax.training.run_description import RunDescription


def divisors(n: int) -> list[int]:
    """In increasing order."""
    return [k for k in range(1, n + 1) if n % k == 0]


def meshes(cluster: Cluster) -> Iterator[dict[str, int]]:
    """All data x fsdp x tensor of the cluster's size with `tensor` inside a node."""
    for tensor in divisors(cluster.gpus_per_node):
        for fsdp in divisors(cluster.size // tensor):
            yield {"data": cluster.size // (tensor * fsdp), "fsdp": fsdp, "tensor": tensor}


def layouts(run: RunDescription, *, cluster: Cluster) -> Iterator[tuple[RunDescription, dict[str, int]]]:
    """Every layout of `run` that its batch and its shapes allow, with the exact bytes of the step's arguments."""
    for mesh in meshes(cluster):
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


def ranked(run: RunDescription, *, cluster: Cluster, tokens: float, energy: Energy) -> list[Plan]:
    """All layouts that fit by formula, the fastest first; empty if none does."""
    plans = [
        analytic_plan(layout, cluster=cluster, tokens=tokens, energy=energy, arguments=arguments)
        for layout, arguments in layouts(run, cluster=cluster)
    ]
    return sorted((plan for plan in plans if plan.memory.fits), key=lambda plan: plan.time.total)


def changes(old: RunDescription, new: RunDescription) -> list[str]:
    """What is different in `new`, as overrides of the config."""
    found = [f"mesh.{axis}={new.mesh[axis]}" for axis in new.mesh if new.mesh[axis] != old.mesh[axis]]
    if new.options.remat != old.options.remat:
        found.append(f"compute.remat={new.options.remat}")
    if new.accumulation != old.accumulation:
        found.append(f"train.accumulation={new.accumulation}")
    return found


def nearest(run: RunDescription, *, plans: list[Plan]) -> Plan | None:
    """Of the plans that fit, the one that changes least in `run`; the fastest of those. None if there is none."""
    return min(plans, key=lambda plan: (len(changes(run, plan.run)), plan.time.total), default=None)


def does_not_fit(run: RunDescription, plan: Plan, *, plans: list[Plan]) -> UserError:
    """One line: what is needed, what there is, and the nearest that fits."""
    memory = plan.memory
    message = (
        f"{run.describe()} does not fit: it needs {gib(memory.total)} of {gib(memory.usable)} on each "
        f"{plan.cluster.gpu.name} (parameters {gib(memory.parameters)}, optimizer {gib(memory.optimizer)}, gradients "
        f"{gib(memory.gradients)}, activations {gib(memory.activations)}, temporary {gib(memory.temporary)})"
    )
    fitting = nearest(run, plans=plans)
    if fitting is None:
        return UserError(f"{message}; no mesh, remat policy or accumulation of this batch fits on {plan.cluster.size}")
    overrides = " ".join(f"--config.{change}" for change in changes(run, fitting.run))
    return UserError(
        f"{message}; the nearest that fits: {overrides} ({gib(fitting.memory.total)}, "
        f"{fitting.time.total:.2f} s a step)"
    )


def gib(size: float) -> str:
    """`12.3 GiB`."""
    return f"{size / 2**30:.1f} GiB"
