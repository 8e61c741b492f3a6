"""What is to be trained, and how it is laid out: all that decides a step's memory and time."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AbstractMesh, Mesh

from allam_jax.data.batch import DTYPES
from allam_jax.errors import UserError
from allam_jax.model.llama_config import ComputeOptions, LlamaConfig
from allam_jax.parallel.mesh import abstract_mesh, batch_sharding, mesh_shape
from allam_jax.parallel.sharding import pieces
from allam_jax.planning.workload import Workload
from allam_jax.training.optimizer import make_optimizer
from allam_jax.training.schedules import make_schedule
from allam_jax.training.state import TrainState, abstract_state


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """A training step's settings, as the train task would take them from the same config."""

    model: LlamaConfig
    options: ComputeOptions
    optimizer: optax.GradientTransformationExtraArgs
    mesh: Mapping[str, int]  # size of each axis
    batch_size: int
    seq_len: int
    accumulation: int
    param_dtype: str
    z_loss: float
    loss_chunks: int
    num_sources: int

    @property
    def batch_shards(self) -> int:
        """Into how many pieces the rows of a batch are cut."""
        return pieces("batch", self.mesh)

    @property
    def gpus(self) -> int:
        """Of the mesh."""
        return math.prod(self.mesh.values())

    @property
    def workload(self) -> Workload:
        """The analytic model's view of it."""
        return Workload(
            model=self.model,
            mesh=self.mesh,
            rows=self.batch_size // (self.batch_shards * self.accumulation),
            accumulation=self.accumulation,
            seq_len=self.seq_len,
            remat=self.options.remat,
            compute_dtype=self.options.compute_dtype,
            loss_chunks=self.loss_chunks,
            attention="materialized" if self.options.attention == "xla" else "fused",
        )

    def describe(self) -> str:
        """For example `data 1 x fsdp 128 x tensor 8, remat full, accumulation 2, 1 row a shard`."""
        mesh = " x ".join(f"{axis} {size}" for axis, size in self.mesh.items())
        rows = self.workload.rows
        return (
            f"{mesh}, remat {self.options.remat}, accumulation {self.accumulation}, "
            f"{rows} row{'s' if rows > 1 else ''} a shard"
        )


def described_run(config: Any, *, device_count: int, model: LlamaConfig | None = None) -> Run:
    """The run of a train config on so many devices; UserError where sizes do not fit together.

    Neither tokenizer nor weights are opened: without `model`, `config.model` must say everything, the vocabulary too.
    """
    return Run(
        model=model or _model_of(config),
        options=config.compute,
        optimizer=make_optimizer(
            config.optimizer,
            schedule=make_schedule(config.schedule, total_steps=config.train.steps),
            guard=config.guard,
        ),
        mesh=mesh_shape(dataclasses.asdict(config.mesh), device_count=device_count),
        batch_size=config.data.batch_size,
        seq_len=config.data.seq_len,
        accumulation=config.train.accumulation,
        param_dtype=config.param_dtype,
        z_loss=config.train.z_loss,
        loss_chunks=config.train.loss_chunks,
        num_sources=max(len(config.data.sources), 1),
    )


def _model_of(config: Any) -> LlamaConfig:
    if not config.model.vocab_size:
        raise UserError(
            "config.model.vocab_size = 0: a plan opens no tokenizer; give the number of ids that it will have"
        )
    return config.model


def shapes_of(run: Run, *, mesh: Mesh | AbstractMesh) -> tuple[TrainState, dict[str, jax.ShapeDtypeStruct]]:
    """Shapes, dtypes and shardings of the state and of a batch; UserError for a parameter the mesh does not divide."""
    state = abstract_state(run.model, optimizer=run.optimizer, mesh=mesh, param_dtype=run.param_dtype)  # type: ignore[arg-type]
    sharding = batch_sharding(mesh)
    shape = (run.batch_size, run.seq_len)
    return state, {key: jax.ShapeDtypeStruct(shape, dtype, sharding=sharding) for key, dtype in DTYPES.items()}


def described_mesh(run: Run) -> AbstractMesh:
    """A mesh of the run's shape without devices, for counting."""
    return abstract_mesh(run.mesh)


def device_bytes(tree: Any) -> int:
    """Bytes that a tree of shapes with shardings takes on each device."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * np.dtype(jnp.dtype(leaf.dtype)).itemsize
        for leaf in jax.tree.leaves(tree)
    )
