"""A roofline: turns work and traffic into seconds, with all assumptions in `gpu_cluster.EFFICIENCIES`.

A piece of work takes the longer of two times: its arithmetic at the reachable share of the peak, and its bytes at the
reachable share of the memory bandwidth. Pieces run one after the other. A collective takes the bytes of its ring over
the slowest link that it uses, plus the hops. Collectives over `tensor` alone, and those that the compiler schedules
alone, count in full. Compute hides a share (`overlap`) of all other collectives, up to its own duration.
"""

import dataclasses
import math
from collections.abc import Iterable

from allam_jax.planning.collectives import Collective
from allam_jax.planning.gpu_cluster import Cluster
from allam_jax.planning.step_work import Work


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepTime:
    """Seconds of one step by cause. `total` is their sum without `hidden`."""

    matmul: float
    attention: float
    memory: float
    tensor: float  # collectives over `tensor`
    exposed: float  # the part of collectives over `fsdp` and `data` that compute does not hide
    hidden: float

    @property
    def compute(self) -> float:
        """The seconds of the GPU's own work."""
        return self.matmul + self.attention + self.memory

    @property
    def total(self) -> float:
        """The seconds of the whole step."""
        return self.compute + self.tensor + self.exposed


def step_time(work: Iterable[Work], collectives: Iterable[Collective], *, cluster: Cluster, dtype: str) -> StepTime:
    """Predicts the time of a step from work and collectives of one GPU; kernels need their operations.

    `dtype` is that of the matmuls: "bfloat16", "float16" or "float32".
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
    """The seconds of one piece of this work."""
    share = cluster.efficiency.attention if piece.kind == "kernel" else cluster.efficiency.matmul
    arithmetic = piece.flops / (cluster.gpu.peak_flops[dtype] * share)
    return max(arithmetic, piece.bytes / (cluster.gpu.memory_bandwidth * cluster.efficiency.memory))


def collective_seconds(collective: Collective, *, cluster: Cluster) -> float:
    """The seconds of one run at the speed of the slowest link.

    Data moves in rings through all members; the hops of an all-reduce form a tree. Inside a node each GPU sends at the
    rate of its own link. A group with r members on a node has r network adapters, so r rings run side by side and the
    bytes of each GPU leave the node at r times the rate of one adapter.
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
