"""The cache of keys and values, and the two ways in which a forward pass uses it: filling it, and going on from it.

A cache has a *slot* for each text under way. A slot holds the keys (rotated) and values of the text's first tokens, in
all layers. On a mesh the slots lie on the devices as rows of a batch do, and the key/value heads as those of attention.

Shapes: L layers, S slots, C capacity (tokens of a slot), K key/value heads, H head size; B, T, N as in
`model/llama.py`.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, Self

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh, PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from allam_jax.model import layouts
from allam_jax.model.llama_config import LlamaConfig
from allam_jax.parallel.sharding import logical_to_spec
from kernels.attention import decoding

AXES = ("layers", "batch", None, "act_kv_heads", None)

WithinRows = Callable[[Array, Array, Array], Array]  # attention of q_BTNH, k_BTKH, v_BTKH within the rows


class Memory(Protocol):
    """What the layers of a forward pass read and extend; a pytree."""

    def of_layer(self, layer: Int[Array, ""]) -> Self:
        """The same memory, for one layer."""
        ...

    def mix(self, q_BTNH: Array, k_BTKH: Array, v_BTKH: Array, *, within_rows: WithinRows) -> tuple[Array, Self]:
        """Attention's output [B, T, N, H] for new tokens, and the memory that has their keys and values."""
        ...


class KVCache(NamedTuple):
    """Keys and values of all layers, slots and tokens."""

    k_LSCKH: Float[Array, "L S C K H"]
    v_LSCKH: Float[Array, "L S C K H"]

    @classmethod
    def empty(cls, config: LlamaConfig, *, slots: int, capacity: int, dtype: jnp.dtype) -> Self:
        """Zeros for so many slots; the capacity is rounded up to a multiple of `decoding.BLOCK`."""
        capacity = -(-capacity // decoding.BLOCK) * decoding.BLOCK
        shape = (config.num_layers, slots, capacity, config.num_kv_heads, config.head_dim)
        return cls(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))

    @property
    def slots(self) -> int:
        """Texts that it can hold."""
        return self.k_LSCKH.shape[1]

    @property
    def capacity(self) -> int:
        """Tokens of a slot."""
        return self.k_LSCKH.shape[2]

    def spec(self, mesh: Mesh | AbstractMesh) -> PartitionSpec:
        """How both arrays lie on a mesh; what its axes do not divide is whole on every device."""
        return logical_to_spec(AXES, mesh=mesh, shape=self.k_LSCKH.shape, whole_if_uneven=True)

    def written(
        self, layer: Int[Array, ""], slots_T: Int[Array, " T"], positions_T: Int[Array, " T"], kv_TKH: tuple
    ) -> Self:
        """With the keys and values of some tokens of a layer. What is beyond the last slot or position is left out."""

        def local(part, layer, slots_T, positions_T, new_TKH):
            slots = part.array.shape[1]
            slots_T = slots_T - part.first_slot
            slots_T = jnp.where(slots_T < 0, slots, slots_T)  # an index below zero would count from the end
            return part.array.at[layer, slots_T, positions_T].set(new_TKH.astype(part.array.dtype), mode="drop")

        heads = PartitionSpec(None, self._heads_axes)
        return type(self)(
            *(
                self._on_shards(local, array, (layer, slots_T, positions_T, new), (*[PartitionSpec()] * 3, heads))
                for array, new in zip(self, kv_TKH, strict=True)
            )
        )

    def copied(self, source: Int[Array, ""], targets_S: Bool[Array, " S"]) -> Self:
        """With all that slot `source` holds in the marked slots too."""

        def local(part, source, targets_S):
            slots, first = part.array.shape[1], part.first_slot
            row = jax.lax.dynamic_slice_in_dim(part.array, jnp.clip(source - first, 0, slots - 1), 1, axis=1)
            if part.slot_axes:
                mine = (source >= first) & (source < first + slots)
                row = jax.lax.psum(jnp.where(mine, row, 0), part.slot_axes)

            def copy(slot, array):
                put = lambda array: jax.lax.dynamic_update_slice_in_dim(array, row, slot, axis=1)  # noqa: E731
                return jax.lax.cond(targets_S[first + slot], put, lambda array: array, array)

            return jax.lax.fori_loop(0, slots, copy, part.array)

        nothing = (PartitionSpec(), PartitionSpec())
        return type(self)(*(self._on_shards(local, array, (source, targets_S), nothing) for array in self))

    @property
    def _heads_axes(self) -> Any:
        mesh = jax.sharding.get_abstract_mesh()
        return None if mesh.empty else self.spec(mesh)[3]

    def _on_shards(self, local: Callable, array: Array, arguments: tuple, specs: tuple) -> Array:
        """Runs `local(part, *arguments)` on each device's part of an array of the cache: nothing else is exchanged."""
        mesh = jax.sharding.get_abstract_mesh()
        if mesh.empty or mesh.size == 1:
            return local(_Part(array, 0, ()), *arguments)
        spec = self.spec(mesh)
        axes = (spec[1],) if isinstance(spec[1], str) else tuple(spec[1] or ())

        def on_device(array, *arguments):
            first = jax.lax.axis_index(axes) * array.shape[1] if axes else 0
            return local(_Part(array, first, axes), *arguments)

        return jax.shard_map(on_device, in_specs=(spec, *specs), out_specs=spec, check_vma=False)(array, *arguments)


class _Part(NamedTuple):
    """What one device has of an array of the cache."""

    array: Array
    first_slot: Any
    slot_axes: tuple[str, ...]  # the mesh axes over which slots are cut


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Filling:
    """The memory of a prefill: rows of new texts, whose keys and values go into slots. It reads none."""

    cache: KVCache
    slots_BT: Int[Array, "B T"]  # of each token; one beyond the last slot for padding
    positions_BT: Int[Array, "B T"]
    layer: Int[Array, ""]

    def of_layer(self, layer: Int[Array, ""]) -> Self:
        """See `Memory`."""
        return dataclasses.replace(self, layer=layer)

    def mix(self, q_BTNH: Array, k_BTKH: Array, v_BTKH: Array, *, within_rows: WithinRows) -> tuple[Array, Self]:
        """See `Memory`."""
        new = (k_BTKH.reshape(-1, *k_BTKH.shape[2:]), v_BTKH.reshape(-1, *v_BTKH.shape[2:]))
        cache = self.cache.written(self.layer, self.slots_BT.reshape(-1), self.positions_BT.reshape(-1), new)
        return within_rows(q_BTNH, k_BTKH, v_BTKH), dataclasses.replace(self, cache=cache)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Continuing:
    """The memory of a decoding step: row b is the next token of the text in slot b, and sees all before it."""

    cache: KVCache
    positions_B: Int[Array, " B"]  # of the new tokens; negative for a slot without a text: it sees nothing
    layer: Int[Array, ""]
    backend: str = dataclasses.field(metadata={"static": True})

    def of_layer(self, layer: Int[Array, ""]) -> Self:
        """See `Memory`."""
        return dataclasses.replace(self, layer=layer)

    def mix(self, q_BTNH: Array, k_BTKH: Array, v_BTKH: Array, *, within_rows: WithinRows) -> tuple[Array, Self]:
        """See `Memory`."""
        del within_rows  # a row has one token
        slots, capacity = self.cache.slots, self.cache.capacity
        positions_B = jnp.where(self.positions_B < 0, capacity, self.positions_B)
        cache = self.cache.written(self.layer, jnp.arange(slots), positions_B, (k_BTKH[:, 0], v_BTKH[:, 0]))
        out_BNH = decoding.attend(
            q_BTNH[:, 0],
            *cache,
            layer=self.layer,
            lengths_B=self.positions_B + 1,
            backend=self.backend,
            partition=layouts.ATTENTION,
        )
        return out_BNH[:, None], dataclasses.replace(self, cache=cache)
