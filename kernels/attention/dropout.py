"""Which attention probabilities are dropped: a hash of where they are, the same in every backend and on every mesh.

No mask is ever stored. Whether query t of a head keeps key s is a pure function of (seed, row, head, t, s), counted
over the whole batch and all heads, so that forward pass, backward pass, reference and every way to cut the work draw
the same one. Only uint32 multiplications, shifts and xor are used: they run inside Pallas kernels as they stand.

The mixing steps are the finaliser of MurmurHash3 (two multiplications, three xor-shifts; full avalanche), applied once
for each query and once for each probability.
"""

import dataclasses
from typing import Self

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, UInt32

_ODD = 0x9E3779B9  # 2^32 / golden ratio: neighbouring counters land far apart


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Dropout:
    """The masks of one call. A pytree; the rate is static.

    Attributes:
        seed_2: two words from a random key.
        first_row: index in the whole batch of the first row that the call is given, int32.
        first_head: index among all query heads of the first one that it is given, int32.
        rate: share of the probabilities that are dropped, in (0, 1).
    """

    seed_2: UInt32[Array, "2"]
    first_row: Int[Array, ""]
    first_head: Int[Array, ""]
    rate: float = dataclasses.field(metadata={"static": True})

    @classmethod
    def from_key(cls, key: Array, *, rate: float) -> Self:
        """The masks that belong to a JAX random key, for a call that is given the whole batch and all heads."""
        data = jax.random.key_data(key) if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else key
        zero = jnp.zeros((), jnp.int32)
        return cls(seed_2=data.reshape(-1)[-2:].astype(jnp.uint32), first_row=zero, first_head=zero, rate=rate)

    def of_shard(self, *, rows: Int[Array, ""] | int, heads: Int[Array, ""] | int) -> Self:
        """The masks for a part of the batch and of the heads that starts so many rows and heads further on."""
        return dataclasses.replace(self, first_row=self.first_row + rows, first_head=self.first_head + heads)

    def streams_BN(self, batch: int, num_heads: int) -> UInt32[Array, "B N"]:
        """One number for each row and query head, from which `keep` goes on."""
        rows_B = (self.first_row + jnp.arange(batch, dtype=jnp.int32)).astype(jnp.uint32)
        heads_N = (self.first_head + jnp.arange(num_heads, dtype=jnp.int32)).astype(jnp.uint32)
        of_row_B = _mix(_mix(self.seed_2[0] ^ (rows_B * jnp.uint32(_ODD))) + self.seed_2[1])
        return _mix(of_row_B[:, None] + heads_N[None, :] * jnp.uint32(_ODD))


def keep(
    stream: UInt32[Array, "*shape"], t: Int[Array, "*shape"], s: Int[Array, "*shape"], *, rate: float
) -> Bool[Array, "*shape"]:
    """True where the probability of query position t and key position s is kept, with probability 1 - rate.

    `stream` is from `Dropout.streams_BN`, t and s are int32 positions in the row; the three are broadcast against each
    other. The hash of (stream, t) is computed in their shape: hand in columns and rows, not full tiles. The rate, in
    [0, 1), is exact to 2^-32.
    """
    of_query = _mix(stream + t.astype(jnp.uint32) * jnp.uint32(_ODD))
    bits = _mix(of_query ^ (s.astype(jnp.uint32) * jnp.uint32(_ODD)))
    return bits >= jnp.uint32(min(round(rate * 2**32), 2**32 - 1))


def _mix(x: Array) -> Array:
    x = (x ^ (x >> jnp.uint32(16))) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> jnp.uint32(13))) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> jnp.uint32(16))
