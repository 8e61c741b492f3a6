"""The description of a training run: what is trained and how it is laid out. The trainer and the planner both read it.

Nothing is opened or allocated: shapes, shardings and the step itself follow from a config and a number of devices.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping

import jax
import optax
from jax.sharding import AbstractMesh, Mesh

from allam_jax.errors import UserError
from allam_jax.model.llama import abstract_params
from allam_jax.model.llama_config import ComputeOptions, LlamaConfig
from allam_jax.model.settings import LoraSettings
from allam_jax.parallel.mesh import abstract_mesh, batch_sharding, check_batch, mesh_shape
from allam_jax.parallel.sharding import pieces
from allam_jax.settings import Settings
from allam_jax.training.objective import NextToken, Objective
from allam_jax.training.optimizer import check_no_decay, make_optimizer
from allam_jax.training.schedules import make_schedule
from allam_jax.training.state import TrainState, abstract_state
from allam_jax.training.step import TrainStep, make_train_step
from allam_jax.training.trainable import Trainable
from allam_jax.training.weight_average import with_average


def next_token(run: "RunDescription") -> NextToken:
    """The objective of pre-training."""
    return NextToken(model=run.model, options=run.options, z_loss=run.z_loss, num_chunks=run.loss_chunks)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunDescription:
    """All that decides the program, the memory and the time of a step."""

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
    make_objective: Callable[["RunDescription"], Objective] = next_token
    lora: LoraSettings = dataclasses.field(default_factory=LoraSettings)
    trainable: Trainable = dataclasses.field(default_factory=Trainable)

    @property
    def objective(self) -> Objective:
        """What the step minimises."""
        return self.make_objective(self)

    @property
    def batch_shards(self) -> int:
        """Into how many pieces the rows of a batch are cut."""
        return pieces("batch", self.mesh)

    @property
    def rows_per_shard(self) -> int:
        """Rows of a micro-batch on one batch shard."""
        return self.batch_size // (self.batch_shards * self.accumulation)

    @property
    def device_count(self) -> int:
        """Devices of the mesh."""
        return math.prod(self.mesh.values())

    @property
    def tokens_per_step(self) -> int:
        """Positions of a batch, over all devices."""
        return self.batch_size * self.seq_len

    @property
    def abstract_mesh(self) -> AbstractMesh:
        """A mesh of this shape without devices, for counting."""
        return abstract_mesh(self.mesh)

    def check_batch(self) -> None:
        """UserError unless every device gets the same number of whole rows of every micro-batch."""
        check_batch(self.batch_size, accumulation=self.accumulation, mesh=self.abstract_mesh)

    @property
    def suits_batch(self) -> bool:
        """Whether `check_batch` passes."""
        try:
            self.check_batch()
        except UserError:
            return False
        return True

    def abstract_state(self, mesh: Mesh | AbstractMesh) -> TrainState:
        """Shapes, dtypes and shardings of the state; UserError for a parameter that the mesh does not divide."""
        return abstract_state(
            self.model,
            optimizer=self.optimizer,
            mesh=mesh,
            param_dtype=self.param_dtype,
            lora=self.lora,
            trainable=self.trainable,
        )

    def abstract_batch(self, mesh: Mesh | AbstractMesh) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes, dtypes and shardings of a batch."""
        shape, sharding = (self.batch_size, self.seq_len), batch_sharding(mesh)
        return {
            key: jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)
            for key, dtype in self.objective.batch_dtypes.items()
        }

    def make_step(self, mesh: Mesh) -> TrainStep:
        """The step on the devices of a mesh of this shape."""
        return make_train_step(
            self.objective,
            optimizer=self.optimizer,
            abstract=self.abstract_state(mesh),
            num_sources=self.num_sources,
            accumulation=self.accumulation,
            trainable=self.trainable,
        )

    def describe(self) -> str:
        """For example `data 1 x fsdp 128 x tensor 8, remat full, accumulation 2, 1 row a shard`."""
        mesh = " x ".join(f"{axis} {size}" for axis, size in self.mesh.items())
        rows = self.rows_per_shard
        return (
            f"{mesh}, remat {self.options.remat}, accumulation {self.accumulation}, "
            f"{rows} row{'s' if rows > 1 else ''} a shard"
        )


def described_run(
    config: Settings,
    *,
    device_count: int,
    model: LlamaConfig | None = None,
    objective: Callable[[RunDescription], Objective] = next_token,
    num_sources: int | None = None,
) -> RunDescription:
    """The run of a config on so many devices; UserError where sizes do not fit together.

    Neither tokenizer nor weights are opened: without `model`, `config.model` must say everything, the vocabulary too.

    Args:
        config: of a task that trains.
        device_count: of the mesh.
        model: what is trained; None: as `config.model` says.
        objective: what the run minimises.
        num_sources: that `source_ids` counts; None: those of `config.data`.
    """
    if model is None and not config.model.vocab_size:
        raise UserError(
            "config.model.vocab_size = 0: a plan opens no tokenizer; give the number of ids that it will have"
        )
    network = model or config.model
    check_seq_len(config.data.seq_len, model=network)
    check_no_decay(abstract_params(network), no_decay=config.optimizer.no_decay)
    optimizer = make_optimizer(
        config.optimizer,
        schedule=make_schedule(config.schedule, total_steps=config.train.steps),
        guard=config.guard,
    )
    if config.optimizer.average_decay:
        optimizer = with_average(optimizer, decay=config.optimizer.average_decay)
    return RunDescription(
        model=network,
        options=config.compute,
        optimizer=optimizer,
        mesh=mesh_shape(dataclasses.asdict(config.mesh), device_count=device_count),
        batch_size=config.data.batch_size,
        seq_len=config.data.seq_len,
        accumulation=config.train.accumulation,
        param_dtype=config.param_dtype,
        z_loss=config.train.z_loss,
        loss_chunks=config.train.loss_chunks,
        num_sources=max(len(config.data.sources), 1) if num_sources is None else num_sources,
        make_objective=objective,
        lora=config.lora,
        trainable=Trainable(config.trainable.parameters, config.trainable.rows_from),
    )


def check_seq_len(seq_len: int, *, model: LlamaConfig) -> None:
    """UserError for rows that are longer than what the model is for."""
    if seq_len > model.max_position:
        raise UserError(
            f"config.data.seq_len = {seq_len}: the model's max_position is {model.max_position}, so others would use "
            "it for no longer context; lower data.seq_len, or raise model.max_position (of given weights: "
            "max_position_embeddings in config.json)"
        )
