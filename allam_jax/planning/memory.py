"""The memory of one GPU by class: counted exactly where it can be, estimated or taken from the compiler elsewhere."""

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

    Parameters, optimizer and batch are exact: the sharded sizes of the step's arguments. Gradients are exact sizes of
    what is held at the end of the backward pass. Activations are those kept from the forward for the backward pass.
    Temporary is the rest of what the compiler asks for: gathered layers, copies in the compute dtype, logits of a
    chunk, attention, workspace.
    """

    parameters: int
    optimizer: int
    batch: int
    gradients: int
    activations: int
    temporary: int
    usable: int  # of the GPU's memory

    @property
    def arguments(self) -> int:
        """What lies in memory between steps, and the batch."""
        return self.parameters + self.optimizer + self.batch

    @property
    def total(self) -> int:
        """The highest that a step needs."""
        return self.arguments + self.gradients + self.activations + self.temporary

    @property
    def headroom(self) -> int:
        """Usable memory that is left; negative if the step does not fit."""
        return self.usable - self.total

    @property
    def fits(self) -> bool:
        """Whether the step can run."""
        return self.headroom >= 0


def argument_bytes(run: RunDescription) -> dict[str, int]:
    """Exact bytes on each device of the step's arguments: parameters, optimizer (with step and rng), batch."""
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
    """From formulas alone: exact arguments, estimated rest. `arguments`: of `argument_bytes`, if known already."""
    workload = workload_of(run)
    return Memory(
        **(arguments or argument_bytes(run)),
        gradients=round(gradient_bytes(workload, param_bytes=np.dtype(run.param_dtype).itemsize)),
        activations=round(activation_bytes(workload)),
        temporary=round(working_bytes(workload)),
        usable=cluster.usable_bytes,
    )


def compiled_memory(run: RunDescription, *, cluster: Cluster, module: Module, temp_bytes: int) -> Memory:
    """Of the compiled program; `temp_bytes` is the compiler's figure for everything that is no argument."""
    kept = saved_bytes(module, num_layers=run.model.num_layers)
    # Late in the backward pass activations may lie where gradients will: no class is larger than what there is.
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
    """Bytes that the loops of the forward pass stack up, a slice a layer, for the backward pass.

    These are the elements of a loop's state with a first axis as long as there are layers and which the body changes.
    """
    total = 0
    for name in module.runs():
        for loop in module.computations[name].instructions.values():
            if loop.opcode != "while" or "transpose(" in loop.attributes or loop.trip_count > num_layers:
                continue
            body = module.computations[dict_of_called(loop.attributes)["body"]]
            results = body.operands(body.root)
            for index, (shape, result) in enumerate(zip(loop.shapes, results, strict=True)):
                unchanged = result.opcode == "get-tuple-element" and f"index={index}" in result.attributes.split(", ")
                if shape.dims[:1] == (num_layers,) and not unchanged:
                    total += shape.bytes
    return total


def dict_of_called(attributes: str) -> dict[str, str]:
    """The computations that an instruction names, by role: `condition`, `body`."""
    found = {}
    for part in attributes.split(", "):
        key, _, value = part.partition("=")
        if key in ("condition", "body"):
            found[key] = value.lstrip("%")
    return found
