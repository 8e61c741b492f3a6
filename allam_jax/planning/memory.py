"""The memory of one GPU by class: some counted exactly, some estimated by formula or taken from the compiler."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from allam_jax.planning.gpu_cluster import Cluster
from allam_jax.planning.hlo import Module
from allam_jax.planning.workload import activation_bytes, gradient_bytes, working_bytes, workload_of
from allam_jax.training.run_description import RunDescription


@dataclasses.dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes on one GPU while a step runs.

    Parameters, optimizer and batch are the exact sharded sizes of the step's arguments. Gradients are the exact sizes
    held at the end of the backward pass. Activations are kept from the forward pass for the backward pass. Temporary is
    all other memory that the compiler asks for: gathered layers, copies in the compute dtype, logits of a chunk,
    attention, workspace.
    """

    parameters: int
    optimizer: int
    batch: int
    gradients: int
    activations: int
    temporary: int
    usable: int  # the part of the GPU's memory that a program may use

    @property
    def arguments(self) -> int:
        """The bytes of the state between steps and of the batch."""
        return self.parameters + self.optimizer + self.batch

    @property
    def total(self) -> int:
        """The peak of a step."""
        return self.arguments + self.gradients + self.activations + self.temporary

    @property
    def headroom(self) -> int:
        """The usable bytes that are left; negative if the step does not fit."""
        return self.usable - self.total

    @property
    def fits(self) -> bool:
        """Whether the peak is within the usable memory."""
        return self.headroom >= 0


def argument_bytes(run: RunDescription) -> dict[str, int]:
    """The exact bytes of the step's arguments on each device: parameters, optimizer (with step and rng), batch."""
    mesh = run.abstract_mesh
    state = run.abstract_state(mesh)
    return {
        "parameters": device_bytes(state.params),
        "optimizer": device_bytes((state.optimizer, state.step, state.rng)),
        "batch": device_bytes(run.abstract_batch(mesh)),
    }


def device_bytes(tree: Any) -> int:
    """Bytes that a tree of shapes with shardings takes on each device."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * np.dtype(jnp.dtype(leaf.dtype)).itemsize
        for leaf in jax.tree.leaves(tree)
    )


def estimated_memory(run: RunDescription, *, cluster: Cluster, arguments: dict[str, int] | None = None) -> Memory:
    """Memory from formulas, with exact arguments. `arguments`: the result of `argument_bytes`, if it is known."""
    workload = workload_of(run)
    return Memory(
        **(arguments or argument_bytes(run)),
        gradients=round(gradient_bytes(workload, param_bytes=np.dtype(run.param_dtype).itemsize)),
        activations=round(activation_bytes(workload)),
        temporary=round(working_bytes(workload)),
        usable=cluster.usable_bytes,
    )


def compiled_memory(run: RunDescription, *, cluster: Cluster, module: Module, temp_bytes: int) -> Memory:
    """Memory of a compiled program. `temp_bytes` is the compiler's figure for all memory beside the arguments."""
    kept = saved_bytes(module, num_layers=run.model.num_layers)
    # Late in the backward pass gradients may take the place of activations: no class exceeds what is left.
    activations = min(kept, temp_bytes)
    gradients = round(gradient_bytes(workload_of(run), param_bytes=np.dtype(run.param_dtype).itemsize))
    gradients = min(gradients, temp_bytes - activations)
    return Memory(
        **argument_bytes(run),
        gradients=gradients,
        activations=activations,
        temporary=temp_bytes - activations - gradients,
        usable=cluster.usable_bytes,
    )


def saved_bytes(module: Module, *, num_layers: int) -> int:
    """Bytes that the loops of the forward pass save for the backward pass, one slice per layer.

    They are the elements of a loop's state that the body changes and whose first axis has `num_layers` positions.
    """
    total = 0
    for name in module.runs():
        for loop in module.computations[name].instructions.values():
            if loop.opcode != "while" or "transpose(" in loop.attributes or loop.trip_count > num_layers:
                continue
            body = module.computations[loop.called[0]]
            results = body.operands(body.root)
            for index, (shape, result) in enumerate(zip(loop.shapes, results, strict=True)):
                unchanged = result.opcode == "get-tuple-element" and f"index={index}" in result.attributes.split(", ")
                if shape.dims[:1] == (num_layers,) and not unchanged:
                    total += shape.bytes
    return total
