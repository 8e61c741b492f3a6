"""Shapes that every attention backend is tested on, and those of real training steps, which are timed and tuned for."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from kernels.attention.contract import Request
from kernels.attention.dropout import Dropout


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """One request: shapes, documents of a row and dropout."""

    name: str
    batch: int
    seq_len: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    # Lengths of the documents of a row, the same in every row but rotated by the row's index; what is left is padding.
    documents: tuple[int, ...] = ()  # empty: one that fills the row
    padded_in_front: bool = False  # the padding stands before the documents
    dropout_rate: float = 0.0

    def segment_ids_BT(self) -> np.ndarray:
        """Documents count from 1 in each row; 0 is padding."""
        documents = self.documents or (self.seq_len,)
        rows = np.zeros((self.batch, self.seq_len), np.int32)
        for b in range(self.batch):
            lengths = documents[b % len(documents) :] + documents[: b % len(documents)]
            ids = np.repeat(np.arange(1, len(lengths) + 1), lengths)
            first = self.seq_len - len(ids) if self.padded_in_front else 0
            rows[b, first : first + len(ids)] = ids
        return rows

    @property
    def dropout(self) -> Dropout | None:
        """The case's dropout masks, always the same."""
        return Dropout.from_key(jax.random.key(5), rate=self.dropout_rate) if self.dropout_rate else None

    def request(self, segment_ids_BT: jax.Array | None = None) -> Request:
        """What a backend is asked for, with the head size's usual scale; with other ids where some are given."""
        ids_BT = jnp.asarray(self.segment_ids_BT()) if segment_ids_BT is None else segment_ids_BT
        return Request(segment_ids_BT=ids_BT, scale=self.head_dim**-0.5, dropout=self.dropout)

    def shapes(self, dtype: jnp.dtype) -> tuple[jax.ShapeDtypeStruct, ...]:
        """Of q, k, v, segment ids and the output's gradient."""
        B, T, N, K, H = self.batch, self.seq_len, self.num_heads, self.num_kv_heads, self.head_dim
        q, k = jax.ShapeDtypeStruct((B, T, N, H), dtype), jax.ShapeDtypeStruct((B, T, K, H), dtype)
        return q, k, k, jax.ShapeDtypeStruct((B, T), jnp.int32), q

    def arrays(self, *, dtype: jnp.dtype = jnp.float32, seed: int = 0) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Standard normal q_BTNH, k_BTKH, v_BTKH."""
        rng = np.random.default_rng(seed)
        heads = (self.num_heads, self.num_kv_heads, self.num_kv_heads)
        shapes = [(self.batch, self.seq_len, n, self.head_dim) for n in heads]
        q, k, v = (jnp.asarray(rng.standard_normal(shape), dtype) for shape in shapes)
        return q, k, v


CASES = (
    Case(name="one_document", batch=2, seq_len=128, num_heads=4, num_kv_heads=4, head_dim=32),
    Case(name="packed", batch=2, seq_len=128, num_heads=4, num_kv_heads=4, head_dim=64, documents=(50, 33, 45)),
    Case(name="grouped", batch=2, seq_len=192, num_heads=8, num_kv_heads=2, head_dim=16, documents=(64, 100)),
    Case(name="one_kv_head", batch=1, seq_len=96, num_heads=6, num_kv_heads=1, head_dim=80, documents=(7, 60)),
    Case(name="ragged", batch=3, seq_len=157, num_heads=3, num_kv_heads=3, head_dim=24, documents=(1, 90, 60)),
    Case(
        name="padded_in_front",
        batch=1,
        seq_len=100,
        num_heads=2,
        num_kv_heads=1,
        head_dim=32,
        documents=(70,),
        padded_in_front=True,
    ),
    Case(name="single_token", batch=2, seq_len=1, num_heads=2, num_kv_heads=2, head_dim=8),
    Case(
        name="dropping",
        batch=2,
        seq_len=130,
        num_heads=4,
        num_kv_heads=2,
        head_dim=16,
        documents=(70, 40),
        dropout_rate=0.3,
    ),
    Case(name="many_blocks", batch=1, seq_len=1100, num_heads=1, num_kv_heads=1, head_dim=8, documents=(700, 350)),
)

# Documents of a packed row, as shares of it: web pages are mostly short, with a few long ones.
_SHARES = (0.30, 0.05, 0.12, 0.02, 0.20, 0.01, 0.08, 0.15)


def packed(seq_len: int) -> tuple[int, ...]:
    """Lengths of documents that fill all but about a hundredth of a row."""
    return tuple(int(share * 0.99 * seq_len) for share in _SHARES)


REAL_CASES = (
    Case(name="7b_t2048", batch=4, seq_len=2048, num_heads=32, num_kv_heads=32, head_dim=128, documents=packed(2048)),
    Case(name="7b_t4096", batch=2, seq_len=4096, num_heads=32, num_kv_heads=32, head_dim=128, documents=packed(4096)),
    Case(name="7b_t4096_whole", batch=2, seq_len=4096, num_heads=32, num_kv_heads=32, head_dim=128),
    Case(
        name="7b_t4096_dropout",
        batch=2,
        seq_len=4096,
        num_heads=32,
        num_kv_heads=32,
        head_dim=128,
        documents=packed(4096),
        dropout_rate=0.1,
    ),
    Case(
        name="13b_tp2_t4096", batch=2, seq_len=4096, num_heads=20, num_kv_heads=20, head_dim=128, documents=packed(4096)
    ),
    Case(
        name="34b_tp8_t4096", batch=4, seq_len=4096, num_heads=8, num_kv_heads=1, head_dim=128, documents=packed(4096)
    ),
    Case(
        name="70b_tp8_t8192", batch=2, seq_len=8192, num_heads=8, num_kv_heads=1, head_dim=128, documents=packed(8192)
    ),
    Case(name="70b_tp8_t8192_whole", batch=2, seq_len=8192, num_heads=8, num_kv_heads=1, head_dim=128),
    Case(name="8b_t8192", batch=1, seq_len=8192, num_heads=32, num_kv_heads=8, head_dim=128, documents=packed(8192)),
    Case(name="small_h64", batch=4, seq_len=4096, num_heads=12, num_kv_heads=4, head_dim=64, documents=packed(4096)),
    Case(name="small_h64_whole", batch=4, seq_len=4096, num_heads=12, num_kv_heads=4, head_dim=64),
)
"""One row of documents each; `_whole` means one document a row, which kernels without segments can serve too."""
