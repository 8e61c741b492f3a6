"""Clusters as data: nodes of equal GPUs (`parallel/gpus.py`), and how much of their data-sheet rates is reached."""

import dataclasses
import math

from ml_collections import ConfigDict

from allam_jax.errors import UserError
from allam_jax.parallel.gpus import GPUS, Gpu


@dataclasses.dataclass(frozen=True, kw_only=True)
class Efficiency:
    """The share of each data-sheet rate that long training steps reach: one set for every GPU, model and mesh.

    Fitted by eye to the published runs of `benchmarks/published_speeds.py`, which shows how far each prediction is off;
    the links' share is also what ALLaM's appendix G measured (1,200 to 1,400 of 1,600 Gbit/s between nodes).
    """

    matmul: float = 0.67
    attention: float = 0.50  # of the fused kernels' matmuls, forward and backward together
    memory: float = 0.80
    links: float = 0.80
    overlap: float = 0.60  # of the fsdp and data collectives' time, hidden behind compute; tensor's is never hidden
    hop_seconds: float = 2e-6  # a ring's step inside a node
    network_hop_seconds: float = 4e-6  # a ring's step where the ring leaves a node


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cluster:
    """`nodes` equal nodes of `gpus_per_node` GPUs each."""

    gpu: Gpu
    nodes: int
    gpus_per_node: int
    usable_share: float = 0.92  # of the memory: XLA_PYTHON_CLIENT_MEM_FRACTION; the rest is for CUDA and NCCL
    efficiency: Efficiency = Efficiency()

    def __post_init__(self):
        for key in ("nodes", "gpus_per_node"):
            if getattr(self, key) < 1:
                raise UserError(f"config.plan.{key} = {getattr(self, key)}: expected at least 1")
        if not 0 < self.usable_share <= 1:
            raise UserError(f"config.plan.usable_share = {self.usable_share}: expected a share in (0, 1]")

    @property
    def size(self) -> int:
        """GPUs in all."""
        return self.nodes * self.gpus_per_node

    @property
    def usable_bytes(self) -> int:
        """Memory of one GPU that a program may take."""
        return math.floor(self.gpu.memory_bytes * self.usable_share)

    def describe(self) -> str:
        """For example `128 nodes x 8 A100-SXM4-80GB`."""
        return f"{self.nodes} node{'s' if self.nodes > 1 else ''} x {self.gpus_per_node} {self.gpu.name}"


def cluster_of(plan: ConfigDict) -> Cluster:
    """The cluster of a config's `plan` section; UserError for an unknown GPU or a size that makes no sense."""
    if plan.gpu not in GPUS:
        raise UserError(f"config.plan.gpu = {plan.gpu!r}: expected one of {', '.join(GPUS)}")
    for key in ("memory_gib", "nvlink_gb_s", "network_gb_s"):
        if plan[key] < 0:
            raise UserError(f"config.plan.{key} = {plan[key]}: expected a positive number, or 0 for the data sheet's")
    gpu = GPUS[plan.gpu]
    gpu = dataclasses.replace(
        gpu,
        memory_bytes=round(plan.memory_gib * 2**30) or gpu.memory_bytes,
        nvlink_bandwidth=plan.nvlink_gb_s * 1e9 or gpu.nvlink_bandwidth,
        network_bandwidth=plan.network_gb_s * 1e9 or gpu.network_bandwidth,
    )
    return Cluster(gpu=gpu, nodes=plan.nodes, gpus_per_node=plan.gpus_per_node, usable_share=plan.usable_share)
