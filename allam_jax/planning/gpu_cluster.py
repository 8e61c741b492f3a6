"""Clusters as data: what one GPU, its node and the network give, from data sheets, and how much of it is reached.

Sources: NVIDIA A100 80GB SXM and H100 SXM data sheets (dense rates, no sparsity), DGX A100 and DGX H100 user guides
(network adapters, maximum power of a node); memory as the driver reports it. The tensor-core rate of float32 is TF32's.
"""

import dataclasses
import math

from allam_jax.planning.settings import PlanSettings


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gpu:
    """One GPU and its share of a node. Rates in units per second, links in bytes per second and direction."""

    name: str
    memory_bytes: int
    peak_flops: dict[str, float]  # by compute dtype
    memory_bandwidth: float
    nvlink_bandwidth: float  # to the other GPUs of the node
    network_bandwidth: float  # to other nodes: its network adapter
    watts: float  # of the node at full draw, divided by its GPUs
    target: str  # its description for the compiler: kernels/targets


GPUS = {
    "a100": Gpu(
        name="A100-SXM4-80GB",
        memory_bytes=85_100_068_864,
        peak_flops={"bfloat16": 312e12, "float16": 312e12, "float32": 156e12},
        memory_bandwidth=2.039e12,
        nvlink_bandwidth=300e9,
        network_bandwidth=25e9,
        watts=6500 / 8,
        target="a100",
    ),
    "h100": Gpu(
        name="H100-SXM5-80GB",
        memory_bytes=84_942_979_072,
        peak_flops={"bfloat16": 989.4e12, "float16": 989.4e12, "float32": 494.7e12},
        memory_bandwidth=3.352e12,
        nvlink_bandwidth=450e9,
        network_bandwidth=50e9,
        watts=10_200 / 8,
        target="h100",
    ),
}


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


def cluster_of(plan: PlanSettings) -> Cluster:
    """The cluster of a config's `plan` section."""
    gpu = GPUS[plan.gpu]
    gpu = dataclasses.replace(
        gpu,
        memory_bytes=round(plan.memory_gib * 2**30) or gpu.memory_bytes,
        nvlink_bandwidth=plan.nvlink_gb_s * 1e9 or gpu.nvlink_bandwidth,
        network_bandwidth=plan.network_gb_s * 1e9 or gpu.network_bandwidth,
    )
    return Cluster(gpu=gpu, nodes=plan.nodes, gpus_per_node=plan.gpus_per_node, usable_share=plan.usable_share)
