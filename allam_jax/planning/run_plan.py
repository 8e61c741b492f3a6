"""A plan: the predicted needs of a run on a cluster, with the assumptions behind each number."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

from allam_jax.planning.collectives import Collective
from allam_jax.planning.compiled_step import CompiledStep
from allam_jax.planning.gpu_cluster import Cluster
from allam_jax.planning.memory import Memory, estimated_memory
from allam_jax.planning.roofline import StepTime, collective_seconds, step_time
from allam_jax.planning.step_work import Work
from allam_jax.planning.workload import REMAT, collectives_of_step, work_of_step, workload_of
from allam_jax.training.run_description import RunDescription

_HOUR, _DAY = 3600.0, 86_400.0  # seconds


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReferenceCost:
    """What a live reference of preference optimisation costs one GPU beside the step."""

    bytes: int
    seconds: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunPlan:
    """One run on one cluster. Figures are those of one GPU unless stated otherwise.

    Attributes:
        run: the training step and its layout.
        cluster: the GPUs, links and efficiencies.
        tokens: the tokens of the whole training.
        compiled: the compiled step; None if the figures come from formulas alone.
        arguments: exact bytes of the step's arguments, if the caller has counted them.
    """

    run: RunDescription
    cluster: Cluster
    tokens: float = 0.0
    compiled: CompiledStep | None = None
    arguments: dict[str, int] | None = None

    @functools.cached_property
    def memory(self) -> Memory:
        """Bytes by class."""
        if self.compiled is not None:
            return self.compiled.memory
        return estimated_memory(self.run, cluster=self.cluster, arguments=self.arguments)

    @functools.cached_property
    def work(self) -> Sequence[Work]:
        """All computation of a step."""
        return work_of_step(workload_of(self.run)) if self.compiled is None else self.compiled.work

    @functools.cached_property
    def collectives(self) -> Sequence[Collective]:
        """All communication of a step."""
        if self.compiled is not None:
            return self.compiled.collectives
        return collectives_of_step(workload_of(self.run), cluster=self.cluster)

    @functools.cached_property
    def time(self) -> StepTime:
        """The predicted seconds of a step."""
        return step_time(self.work, self.collectives, cluster=self.cluster, dtype=self.run.options.compute_dtype)

    @property
    def band(self) -> tuple[float, float]:
        """The seconds of a step between which nine in ten published runs lie when they are predicted so."""
        factor = 1 + self.cluster.efficiency.error
        return self.time.total / factor, self.time.total * factor

    @property
    def peak_flops(self) -> float:
        """Operations per second by the data sheet, in the compute dtype."""
        return self.cluster.gpu.peak_flops[self.run.options.compute_dtype]

    @property
    def tokens_per_second_per_gpu(self) -> float:
        """The predicted speed."""
        return self.run.tokens_per_step / self.time.total / self.cluster.size

    @property
    def model_flops(self) -> float:
        """Operations of a step: 6 per weight and token, attention at half the square, recomputation not counted."""
        return self.run.model.flops_per_token(self.run.seq_len) * self.run.tokens_per_step / self.cluster.size

    @property
    def hardware_flops(self) -> float:
        """Operations of the matrix products that a step computes, recomputation included."""
        return sum(piece.flops * piece.count for piece in self.work)

    @property
    def memory_traffic(self) -> float:
        """Bytes that a step reads from memory and writes to it."""
        return sum(piece.bytes * piece.count for piece in self.work)

    @property
    def mfu(self) -> float:
        """Model FLOPs utilisation: model FLOPs over peak FLOPs (PaLM, 2204.02311, appendix B; causal attention)."""
        return self.model_flops / (self.time.total * self.peak_flops)

    @property
    def days(self) -> float:
        """Days of the whole training without interruption."""
        return self.tokens / self.run.tokens_per_step * self.time.total / _DAY

    @property
    def gpu_hours(self) -> float:
        """GPU hours of the whole training on all GPUs."""
        return self.days * _DAY / _HOUR * self.cluster.size

    @property
    def megawatt_hours(self) -> float:
        """Energy of the whole training on all GPUs."""
        return self.cluster.megawatt_hours(self.gpu_hours)

    def to_dict(self) -> dict[str, Any]:
        """The plan as JSON values: bytes, seconds and the assumptions behind them."""
        options, gpu = self.run.options, self.cluster.gpu
        return {
            "model": dataclasses.asdict(self.run.model) | {"parameters": self.run.model.num_parameters},
            "cluster": {"description": self.cluster.describe(), "gpus": self.cluster.size},
            "layout": {
                **self.run.mesh,
                "remat": options.remat,
                "attention": options.attention,
                "accumulation": self.run.accumulation,
                "rows_per_shard": self.run.rows_per_shard,
                "batch_size": self.run.batch_size,
                "seq_len": self.run.seq_len,
                "compute_dtype": options.compute_dtype,
                "param_dtype": self.run.param_dtype,
            },
            "memory": {
                **dataclasses.asdict(self.memory),
                "total": self.memory.total,
                "headroom": self.memory.headroom,
                "fits": self.memory.fits,
            },
            "collectives": [
                {
                    **dataclasses.asdict(each),
                    "axes": list(each.axes),
                    "crosses_nodes": each.crosses_nodes,
                    "sent_bytes_per_step": each.wire_bytes * each.count,
                    "seconds_per_step": collective_seconds(each, cluster=self.cluster) * each.count,
                }
                for each in self.collectives
            ],
            "flops": {"model": self.model_flops, "hardware": self.hardware_flops},
            "memory_traffic_bytes": self.memory_traffic,
            "seconds": {**dataclasses.asdict(self.time), "total": self.time.total, "band": list(self.band)},
            "tokens_per_second_per_gpu": self.tokens_per_second_per_gpu,
            "mfu": self.mfu,
            "training": {
                "tokens": self.tokens,
                "steps": self.tokens / self.run.tokens_per_step,
                "days": self.days,
                "gpu_hours": self.gpu_hours,
                "megawatt_hours": self.megawatt_hours,
            },
            "assumptions": {
                **dataclasses.asdict(self.cluster.efficiency),
                **{key: getattr(self.cluster, key) for key in ("power_share", "pue", "usable_share")},
                "peak_flops": self.peak_flops,
                **{key: getattr(gpu, key) for key in ("memory_bandwidth", "nvlink_bandwidth", "network_bandwidth")},
                "node_watts_per_gpu": gpu.watts,
            },
            "compiled": self.compiled
            and {
                "argument_bytes": self.compiled.argument_bytes,
                "kernels": list(self.compiled.kernels),
                "uncounted_kernels": list(self.compiled.uncounted),
                "seconds": self.compiled.seconds,
            },
        }


def live_reference_cost(plan: RunPlan) -> ReferenceCost:
    """The cost of a live reference: a second copy of the parameters, and a forward pass of it and of the model a step.

    A forward pass takes a third of a step, or a quarter where the step repeats it (remat `full`).
    """
    repeated = REMAT[plan.run.options.remat].projections
    return ReferenceCost(bytes=plan.memory.parameters, seconds=2 * plan.time.total / (3 + repeated))
