"""Clusters as data: nodes of equal GPUs (`parallel/gpus.py`), and the shares of their rates that training reaches."""

import dataclasses
import functools
import math

from allam_jax.parallel.gpus import GPUS, Gpu
from allam_jax.planning.settings import ClusterSettings


@dataclasses.dataclass(frozen=True, kw_only=True)
class Efficiency:
    """The share of each data-sheet rate that long training steps reach on a kind of GPU, whatever model and mesh.

    ALLaM's appendix G measured the share of the links (1,200 to 1,400 of 1,600 Gbit/s).
    """

    matmul: float
    attention: float  # for the matmuls inside fused kernels, forward and backward together
    memory: float
    overlap: float  # of the time of fsdp and data collectives is hidden behind compute; none of tensor's
    links: float = 0.80
    hop_seconds: float = 2e-6  # one step of a ring inside a node
    network_hop_seconds: float = 4e-6  # one step of a ring that leaves the node
    error: float = 0.0  # the band: steps are faster or slower than predicted by no more than this factor, less 1
    basis: str = ""  # what the shares rest on, for reports

    @property
    def fitted(self) -> bool:
        """Whether published runs of this GPU were fitted; otherwise the shares are another's and `error` is a guess."""
        return self.basis == _FITTED


_FITTED = "fitted"
# Fitted by `python -m benchmarks.published_speeds --fit` on half of the published rows of each kind.
EFFICIENCIES = {
    "A100": Efficiency(matmul=0.823, attention=0.311, memory=0.600, overlap=0.300, error=0.26, basis=_FITTED),
    "H100": Efficiency(matmul=0.850, attention=0.558, memory=0.600, overlap=0.300, error=0.09, basis=_FITTED),
}
_GUESSED_ERROR = 0.4
_SCALED = {"H200": "H100", "B200": "H100", "L40S": "A100", "GeForce RTX 4090": "A100"}


def efficiency_of(gpu: Gpu) -> Efficiency:
    """The shares of a kind of GPU; where no published run could be used, those of another kind, marked as scaled."""
    if gpu.family in EFFICIENCIES:
        return EFFICIENCIES[gpu.family]
    other = _SCALED[gpu.family]
    return dataclasses.replace(EFFICIENCIES[other], error=_GUESSED_ERROR, basis=f"scaled from {other}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cluster:
    """`nodes` equal nodes of `gpus_per_node` GPUs each."""

    gpu: Gpu
    nodes: int
    gpus_per_node: int
    usable_share: float = 0.92  # of the memory: XLA_PYTHON_CLIENT_MEM_FRACTION; the rest is for CUDA and NCCL
    power_share: float = 1.0  # of a node's full draw, on average
    pue: float = 1.0  # power of the building over that of its nodes
    assumed: Efficiency | None = None  # shares of the rates; None: those of the GPU's kind

    @functools.cached_property
    def efficiency(self) -> Efficiency:
        """The shares of the rates that a step reaches."""
        return self.assumed or efficiency_of(self.gpu)

    @property
    def size(self) -> int:
        """The number of GPUs."""
        return self.nodes * self.gpus_per_node

    @property
    def usable_bytes(self) -> int:
        """The memory of one GPU that a program may use."""
        return math.floor(self.gpu.memory_bytes * self.usable_share)

    def megawatt_hours(self, gpu_hours: float) -> float:
        """The energy of this many GPU hours, with the building's overhead."""
        return gpu_hours * self.gpu.watts * self.power_share * self.pue / 1e6

    def describe(self) -> str:
        """The cluster in words, for example `128 nodes x 8 A100-SXM4-80GB`."""
        return f"{self.nodes} node{'s' if self.nodes > 1 else ''} x {self.gpus_per_node} {self.gpu.name}"


def cluster_of(plan: ClusterSettings) -> Cluster:
    """The cluster of a section."""
    gpu = GPUS[plan.gpu]
    gpu = dataclasses.replace(
        gpu,
        memory_bytes=round(plan.memory_gib * 2**30) or gpu.memory_bytes,
        nvlink_bandwidth=plan.nvlink_gb_s * 1e9 or gpu.nvlink_bandwidth,
        network_bandwidth=plan.network_gb_s * 1e9 or gpu.network_bandwidth,
    )
    names = ("nodes", "gpus_per_node", "usable_share", "power_share", "pue")
    return Cluster(gpu=gpu, **{name: getattr(plan, name) for name in names})
