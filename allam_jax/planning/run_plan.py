"""A plan: what a run will need on a cluster, as numbers with their assumptions beside them."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from allam_jax.planning.collectives import Collective
from allam_jax.planning.compiled import CompiledStep
from allam_jax.planning.gpu_cluster import Cluster
from allam_jax.planning.memory import Memory, estimated_memory
from allam_jax.planning.roofline import StepTime, collective_seconds, step_time
from allam_jax.planning.work import Work
from allam_jax.planning.workload import collectives_of_step, work_of_step, workload_of
from allam_jax.training.run_description import RunDescription

HOURS, DAYS = 3600.0, 86_400.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Energy:
    """How power is reckoned: a node's full draw, the share of it that training takes, the building's overhead."""

    power_share: float
    pue: float

    def megawatt_hours(self, *, gpu_hours: float, watts: float) -> float:
        """Of GPUs whose share of a node draws `watts` at most."""
        return gpu_hours * watts * self.power_share * self.pue / 1e6


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """One run on one cluster. Per GPU unless said otherwise."""

    run: RunDescription
    cluster: Cluster
    memory: Memory
    work: tuple[Work, ...]
    collectives: tuple[Collective, ...]
    time: StepTime
    compiled: CompiledStep | None  # None: from formulas alone
    tokens: float  # of the whole training
    energy: Energy

    @property
    def tokens_per_second_per_gpu(self) -> float:
        """Predicted."""
        return self.run.tokens_per_step / self.time.total / self.cluster.size

    @property
    def model_flops(self) -> float:
        """Of a step: 6 for each weight and token, causal attention at half the square, nothing for recomputation."""
        return self.run.model.flops_per_token(self.run.seq_len) * self.run.tokens_per_step / self.cluster.size

    @property
    def hardware_flops(self) -> float:
        """Of a step, with recomputation; matrix products only."""
        return sum(piece.flops * piece.count for piece in self.work)

    @property
    def memory_traffic(self) -> float:
        """Bytes read from and written to memory in a step."""
        return sum(piece.bytes * piece.count for piece in self.work)

    @property
    def mfu(self) -> float:
        """Model FLOPs over what the peak rate would do in the time (PaLM, 2204.02311, appendix B; causal attention)."""
        return self.model_flops / (self.time.total * self.cluster.gpu.peak_flops[self.run.options.compute_dtype])

    @property
    def days(self) -> float:
        """Of training without a stop."""
        return self.tokens / self.run.tokens_per_step * self.time.total / DAYS

    @property
    def gpu_hours(self) -> float:
        """Of the whole training."""
        return self.days * DAYS / HOURS * self.cluster.size

    @property
    def megawatt_hours(self) -> float:
        """Of the whole training."""
        return self.energy.megawatt_hours(gpu_hours=self.gpu_hours, watts=self.cluster.gpu.watts)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; bytes, seconds, and what each figure assumes."""
        dtype = self.run.options.compute_dtype
        return {
            "model": dataclasses.asdict(self.run.model) | {"parameters": self.run.model.num_parameters},
            "cluster": {"description": self.cluster.describe(), "gpus": self.cluster.size},
            "layout": {
                **self.run.mesh,
                "remat": self.run.options.remat,
                "attention": self.run.options.attention,
                "accumulation": self.run.accumulation,
                "rows_per_shard": self.run.rows_per_shard,
                "batch_size": self.run.batch_size,
                "seq_len": self.run.seq_len,
                "compute_dtype": dtype,
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
            "seconds": {**dataclasses.asdict(self.time), "total": self.time.total},
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
                **dataclasses.asdict(self.energy),
                "usable_share": self.cluster.usable_share,
                "peak_flops": self.cluster.gpu.peak_flops[dtype],
                "memory_bandwidth": self.cluster.gpu.memory_bandwidth,
                "nvlink_bandwidth": self.cluster.gpu.nvlink_bandwidth,
                "network_bandwidth": self.cluster.gpu.network_bandwidth,
                "node_watts_per_gpu": self.cluster.gpu.watts,
            },
            "compiled": None
            if self.compiled is None
            else {
                "argument_bytes": self.compiled.argument_bytes,
                "kernels": list(self.compiled.kernels),
                "uncounted_kernels": list(self.compiled.uncounted),
                "seconds": self.compiled.seconds,
            },
        }


def analytic_plan(
    run: RunDescription, *, cluster: Cluster, tokens: float, energy: Energy, arguments: dict[str, int] | None = None
) -> Plan:
    """From formulas alone. `arguments`: exact bytes of the step's arguments, if counted before."""
    work = work_of_step(workload_of(run))
    collectives = collectives_of_step(workload_of(run), cluster=cluster)
    return _plan(
        run,
        cluster,
        estimated_memory(run, cluster=cluster, arguments=arguments),
        work,
        collectives,
        None,
        tokens,
        energy,
    )


def compiled_plan(run: RunDescription, step: CompiledStep, *, cluster: Cluster, tokens: float, energy: Energy) -> Plan:
    """From the compiled program."""
    return _plan(run, cluster, step.memory, step.work, step.collectives, step, tokens, energy)


def _plan(
    run: RunDescription,
    cluster: Cluster,
    memory: Memory,
    work: Sequence[Work],
    collectives: Sequence[Collective],
    compiled: CompiledStep | None,
    tokens: float,
    energy: Energy,
) -> Plan:
    return Plan(
        run=run,
        cluster=cluster,
        memory=memory,
        work=tuple(work),
        collectives=tuple(collectives),
        time=step_time(work, collectives, cluster=cluster, dtype=run.options.compute_dtype),
        compiled=compiled,
        tokens=tokens,
        energy=energy,
    )
