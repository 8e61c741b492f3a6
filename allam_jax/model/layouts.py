"""How the activations of the network lie on the mesh, in the logical axes of `parallel/sharding.py`.

Between matmuls the tensor devices share the positions of the residual stream. Each of them computes norms and residual
sums, and keeps layer inputs, for its own positions only (sequence parallelism: Korthikanti et al. 2022, 2205.05198).

A change of layout names both ends. The compiler then makes one reduce-scatter of a sum of partial products, forward and
backward. If only the last layout is given, it may gather the whole batch.
"""

from jaxtyping import Array

from allam_jax.parallel.sharding import DEFAULT_RULES, constrain
from kernels.attention.api import Partition

WHOLE = ("batch", "sequence", "act_embed")
RESIDUAL = ("batch", "residual", "act_embed")
QUERIES = ("batch", "sequence", "act_heads", None)
KEYS = ("batch", "sequence", "act_kv_heads", None)
FEED_FORWARD = ("batch", "sequence", "act_mlp")
LOGITS = ("batch", "sequence", "act_vocab")

# Under FSDP a device looks up the tokens of all shards in its own slice of the table's width.
TOKENS_OF_ALL_SHARDS = ("replica_batch", "sequence")
LOOK_UP = (("replica_batch", "sequence", "embed"), ("replica_batch", "residual", "embed"), RESIDUAL)

ATTENTION = Partition(batch=DEFAULT_RULES.mesh_axes("batch"), heads=DEFAULT_RULES.mesh_axes("act_heads"))


def all_positions(x_BTD: Array) -> Array:
    """From the residual stream's layout: every tensor device gets all positions, as a matmul's input needs them."""
    return constrain(x_BTD, RESIDUAL, WHOLE)


def own_positions(x_BTD: Array) -> Array:
    """To the residual stream's layout: a matmul's result is summed, and each tensor device keeps its positions."""
    return constrain(x_BTD, WHOLE, RESIDUAL)
