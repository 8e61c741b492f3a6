"""What it takes to generate with a model: the cache of keys and values, and the slots that fit.

The weights are in 16 bits and cut over some GPUs of a node, as are key/value heads, where they divide.
"""

import dataclasses

from allam_jax.model.llama_config import LlamaConfig
from allam_jax.planning.gpu_cluster import Cluster

BYTES = 2  # of a number


@dataclasses.dataclass(frozen=True, kw_only=True)
class GenerationCost:
    """Of one GPU.

    Attributes:
        weights: bytes of the weights.
        token: bytes of a token's keys and values.
        slots: texts of the full length for which there is memory; 0 if not even the weights fit.
        seconds_empty, seconds_full: the least time of a step, which is that of reading the weights, and the cache of so
            many full slots too.
    """

    weights: int
    token: int
    slots: int
    seconds_empty: float
    seconds_full: float


def generation_cost(model: LlamaConfig, *, cluster: Cluster, gpus: int, tokens: int) -> GenerationCost:
    """The cost where so many GPUs of a node share a model, for texts of so many tokens."""
    heads = model.num_kv_heads // gpus if model.num_kv_heads % gpus == 0 else model.num_kv_heads
    weights = BYTES * model.num_parameters // gpus
    token = 2 * BYTES * model.num_layers * heads * model.head_dim
    slots = max(0, (cluster.usable_bytes - weights) // (token * tokens))
    bandwidth = cluster.gpu.memory_bandwidth * cluster.efficiency.memory
    return GenerationCost(
        weights=weights,
        token=token,
        slots=slots,
        seconds_empty=weights / bandwidth,
        seconds_full=(weights + slots * tokens * token) / bandwidth,
    )
