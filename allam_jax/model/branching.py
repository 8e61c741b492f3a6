"""The memory of rows of texts that share their beginnings: every shared part is computed once.

A text is cut into up to three parts, each of which sees itself and the parts before it:

    trunk      computed earlier, by a prefill into a cache; the texts of a whole row go on from one trunk
    context    tokens of the row
    branch     tokens of the same row behind a context; several branches of one context do not see each other

Attention over all that a token sees is the sum of attentions over the parts, weighted by their softmax denominators.

Shapes as in `model/llama.py`; S trunks, C tokens that a trunk can have.
"""

import dataclasses
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from allam_jax.model import layouts
from allam_jax.model.kv_cache import KVCache, WithinRows
from kernels.attention.api import attend
from kernels.attention.contract import MASKED, AttentionOutput, Places, Request


class Parts(NamedTuple):
    """To which part of a text each token of the rows belongs. Int32; positions count from the start of the trunk."""

    blocks_BT: Int[Any, "B T"]  # a context or a branch, numbered in the row from 1; 0 for padding
    contexts_BT: Int[Any, "B T"]  # number of the context whose token it is; 0 for branches and padding
    behind_BT: Int[Any, "B T"]  # number of the context that a branch's token is behind; 0 for contexts and padding
    positions_BT: Int[Any, "B T"]


class Trunks(NamedTuple):
    """Keys and values of trunks, and which of them a row goes on from."""

    cache: KVCache
    lengths_B: Int[Any, " B"]  # of each row's trunk
    slots_B: Int[Any, " B"]


Seen = tuple[AttentionOutput, Bool[Array, "B T"]]  # attention over the keys of a part, and which queries see any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Branching:
    """The memory of such rows. It is only read. `branches` says whether any row has one: less is computed without."""

    parts: Parts
    trunks: Trunks | None
    layer: Int[Array, ""]
    branches: bool = dataclasses.field(metadata={"static": True})
    backend: str = dataclasses.field(metadata={"static": True})

    def of_layer(self, layer: Int[Array, ""]) -> Self:
        """See `model/kv_cache.py:Memory`."""
        return dataclasses.replace(self, layer=layer)

    def mix(self, q_BTNH: Array, k_BTKH: Array, v_BTKH: Array, *, within_rows: WithinRows) -> tuple[Array, Self]:
        """See `model/kv_cache.py:Memory`."""
        del within_rows  # it gives no denominators
        blocks_BT, contexts_BT, behind_BT, positions_BT = self.parts

        def over(k_BSKH: Array, v_BSKH: Array, segment_ids_BT: Array, keys: Places | None) -> Seen:
            positions = None if keys is None else positions_BT
            scale = q_BTNH.shape[-1] ** -0.5
            request = Request(segment_ids_BT=segment_ids_BT, scale=scale, positions_BT=positions, keys=keys)
            output = attend(q_BTNH, k_BSKH, v_BSKH, request, backend=self.backend, partition=layouts.ATTENTION)
            return output, segment_ids_BT != 0

        seen = [over(k_BTKH, v_BTKH, blocks_BT, None)]
        if self.branches:
            seen.append(over(k_BTKH, v_BTKH, behind_BT, Places(contexts_BT, positions_BT)))
        if self.trunks is not None:
            k_BCKH, v_BCKH = (self._of_rows(array) for array in self.trunks.cache)
            places_BC = jnp.broadcast_to(jnp.arange(k_BCKH.shape[1], dtype=jnp.int32), k_BCKH.shape[:2])
            there_BC = (places_BC < self.trunks.lengths_B[:, None]).astype(jnp.int32)
            sees_BT = ((blocks_BT != 0) & (self.trunks.lengths_B[:, None] > 0)).astype(jnp.int32)
            seen.append(over(k_BCKH, v_BCKH, sees_BT, Places(there_BC, places_BC)))
        return _joined(seen), self

    def _of_rows(self, array_LSCKH: Array) -> Array:
        """Keys or values of each row's trunk in this layer."""
        assert self.trunks is not None
        array_SCKH = jax.lax.dynamic_index_in_dim(array_LSCKH, self.layer, keepdims=False)
        mesh = jax.sharding.get_abstract_mesh()
        if not mesh.empty and mesh.size > 1:  # a row may go on from any trunk: every device of its heads gets all
            heads = self.trunks.cache.spec(mesh)[3]
            array_SCKH = jax.lax.with_sharding_constraint(
                array_SCKH, NamedSharding(mesh, PartitionSpec(None, None, heads, None))
            )
        return array_SCKH[self.trunks.slots_B]


def _joined(seen: list[Seen]) -> Float[Array, "B T N H"]:
    """Attention over the keys of all parts together, from that over each."""
    if len(seen) == 1:
        return seen[0][0].out_BTNH
    log_z_BNT = [jnp.where(sighted_BT[:, None, :], output.log_z_BNT, MASKED) for output, sighted_BT in seen]
    total_BNT = jax.nn.logsumexp(jnp.stack(log_z_BNT), axis=0)
    out_BTNH = sum(
        output.out_BTNH.astype(jnp.float32) * jnp.exp(part_BNT - total_BNT).transpose(0, 2, 1)[..., None]
        for (output, _), part_BNT in zip(seen, log_z_BNT, strict=True)
    )
    return jnp.asarray(out_BTNH).astype(seen[0][0].out_BTNH.dtype)
