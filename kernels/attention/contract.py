"""What every attention backend takes and gives: `backend.attention(q, k, v, request) -> AttentionOutput`.

Shapes of this folder: B batch, T sequence, N query heads, K key/value heads, G = N / K query heads that share one, H
head size; S is the number of keys, which is T unless a request gives them places of their own.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt32

from kernels.attention.dropout import Dropout

# Stands for minus infinity in the scores: finite, so that a row without any visible key gives no NaN.
MASKED = -1e30


class Places(NamedTuple):
    """Where tokens are: their documents, and their positions in them. Int32; a document's positions increase."""

    segment_ids: Int[Array, "B T"]  # 0 for padding, equal numbers for the tokens of one document
    positions: Int[Array, "B T"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """Everything that a call of attention is asked for beside q, k and v. A pytree; the scale is static.

    A query sees the keys of its document that are at or before its own position. Padding sees nothing. Only this class
    knows which keys a query may see, and only `over_mesh` cuts it over devices.

    Attributes:
        segment_ids_BT: of the queries, int32; 0 for padding, equal numbers for the tokens of one document.
        scale: of the scores before the softmax.
        dropout: which probabilities are dropped; None drops nothing.
        positions_BT, keys: positions of the queries and places of the keys, [B, S], such as those of a cache. None: the
            keys are those of the same tokens, whose order in the row is that of their positions.
    """

    segment_ids_BT: Int[Array, "B T"]
    scale: float = dataclasses.field(metadata={"static": True})
    dropout: Dropout | None = None
    positions_BT: Int[Array, "B T"] | None = None
    keys: Places | None = None

    def refuse_other_keys(self) -> None:
        """Raises NotImplementedError if the keys have places of their own, for a backend that takes only one row."""
        if self.keys is not None:
            raise NotImplementedError("keys at other places than the queries'")

    @property
    def dropout_rate(self) -> float:
        """The share of the probabilities that are dropped."""
        return 0.0 if self.dropout is None else float(self.dropout.rate)

    def streams_BN(self, num_heads: int) -> UInt32[Array, "B N"] | None:
        """The numbers from which `dropout.keep` goes on; None without dropout."""
        return None if self.dropout is None else self.dropout.streams_BN(self.segment_ids_BT.shape[0], num_heads)

    def visible_BtS(self, first: int = 0, end: int | None = None) -> Bool[Array, "B t S"]:
        """Which keys the queries `first` <= t < `end` may see; of the whole row without bounds.

        Keys with places of their own are all there. Otherwise only those at s < `end` are: none behind is seen.
        """
        end = self.segment_ids_BT.shape[1] if end is None else end
        queries_Bt = self.segment_ids_BT[:, first:end]
        if self.keys is not None and self.positions_BT is not None:
            keys_BS = self.keys.segment_ids
            causal = self.positions_BT[:, first:end, None] >= self.keys.positions[:, None, :]
        else:
            keys_BS = self.segment_ids_BT[:, :end]
            causal = jnp.arange(first, end)[:, None] >= jnp.arange(end)[None, :]
        return causal & (queries_Bt[:, :, None] == keys_BS[:, None, :]) & (queries_Bt != 0)[:, :, None]

    def sighted_Bt(self, first: int, end: int) -> Bool[Array, "B t"]:
        """Which of the queries `first` <= t < `end` see any key."""
        if self.keys is None:
            return self.segment_ids_BT[:, first:end] != 0  # a token sees itself
        return jnp.any(self.visible_BtS(first, end), axis=-1)


def check_dtypes(q_BTNH: Array, k_BTKH: Array, v_BTKH: Array, *, expected: Sequence[str]) -> None:
    """Raises NotImplementedError unless q, k and v have the same dtype, one of those expected."""
    found = [str(a.dtype) for a in (q_BTNH, k_BTKH, v_BTKH)]
    if len(set(found)) > 1 or found[0] not in expected:
        raise NotImplementedError(f"q, k and v are {', '.join(found)}; expected the same of {', '.join(expected)}")


class AttentionOutput(NamedTuple):
    """What every backend gives; both parts can be differentiated."""

    out_BTNH: Float[Array, "B T N H"]
    # The log of each softmax's denominator, sum(exp(scale * q k)) over the visible keys, float32; 0 where none is
    # visible. Two outputs over different keys can be joined by it.
    log_z_BNT: Float[Array, "B N T"]
