"""From work and traffic to seconds: a roofline with its assumptions in one place (`cluster.Efficiency`).

Every piece of work takes the longer of its arithmetic at the reachable share of the peak and its bytes at the reachable
share of the memory's bandwidth; pieces follow each other. A collective takes its ring's bytes over the slowest link
that it uses, plus the hops. Over `tensor` alone nothing else can run meanwhile, so its time is added in full, as is
that of collectives which the compiler has scheduled without anything beside them; of all others a share (`overlap`) is
hidden behind compute, as far as there is compute to hide it.
"""

import dataclasses
import math
from collections.abc import Iterable

from allam_jax.planning.collectives import Collective
from allam_jax.planning.gpu_cluster import Cluster
from allam_jax.planning.work import Work


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepTime:
    """Seconds of one step by cause; `total` is their sum without `hidden`."""

    matmul: float
    attention: float
    memory: float
    tensor: float  # collectives over `tensor`
    exposed: float  # collectives over `fsdp` and `data` that compute does not hide
    hidden: float

    @property
    def compute(self) -> float:
        """Of the GPU's own work."""
        return self.matmul + self.attention + self.memory

    @property
    def total(self) -> float:
        """Of the whole step."""
        return self.compute + self.tensor + self.exposed


def step_time(work: Iterable[Work], collectives: Iterable[Collective], *, cluster: Cluster, dtype: str) -> StepTime:
    """Predicts a step.

    Args:
        work: of one GPU; kernels with their operations filled in.
        collectives: of one GPU.
        cluster: rates and efficiencies.
        dtype: of the matmuls: "bfloat16", "float16" or "float32".
    """
    seconds = {"matmul": 0.0, "kernel": 0.0, "memory": 0.0}
    for piece in work:
        seconds[piece.kind] += work_seconds(piece, cluster=cluster, dtype=dtype) * piece.count
    compute = sum(seconds.values())
    tensor = others = beside = 0.0
    for collective in collectives:
        time = collective_seconds(collective, cluster=cluster) * collective.count
        if collective.axes == ("tensor",):
            tensor += time
        else:
            others += time
            beside += time if collective.asynchronous else 0.0
    hidden = min(cluster.efficiency.overlap * beside, compute)
    return StepTime(
        matmul=seconds["matmul"],
        attention=seconds["kernel"],
        memory=seconds["memory"],
        tensor=tensor,
        exposed=others - hidden,
        hidden=hidden,
    )


def work_seconds(piece: Work, *, cluster: Cluster, dtype: str) -> float:
    """Of one run of this piece."""
    share = cluster.efficiency.attention if piece.kind == "kernel" else cluster.efficiency.matmul
    arithmetic = piece.flops / (cluster.gpu.peak_flops[dtype] * share)
    return max(arithmetic, piece.bytes / (cluster.gpu.memory_bandwidth * cluster.efficiency.memory))


def collective_seconds(collective: Collective, *, cluster: Cluster) -> float:
    """Of one run, at the speed of the slowest link: rings through all members, but trees for the hops of a reduction.

    Inside a node each GPU sends at its own link's rate. A group with r members on a node has r adapters to the network,
    so that r rings run side by side and each GPU's bytes leave the node at r times one adapter's rate.
    """
    gpu, efficiency = cluster.gpu, cluster.efficiency
    bandwidth, hop = gpu.nvlink_bandwidth, efficiency.hop_seconds
    if collective.crosses_nodes:
        bandwidth = min(bandwidth, gpu.network_bandwidth * collective.ranks_per_node)
        hop = efficiency.network_hop_seconds
    hops = collective.group_size - 1
    if collective.kind == "collective-permute":
        hops = 1
    elif collective.kind == "all-reduce":
        hops = 2 * math.ceil(math.log2(collective.group_size))
    return collective.wire_bytes / (bandwidth * efficiency.links) + hops * hop
