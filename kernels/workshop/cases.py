"""Shapes that every attention backend is tested on, and those of real training steps, which are timed and tuned for."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from kernels.attention.contract import Request
from kernels.attention.dropout import Dropout


@dataclasses.dataclass(frozen=True)
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
        q, k, v = (jnp.asarray(rng.standard_normal(a.shape), dtype) for a in self.shapes(dtype)[:3])
        return q, k, v


CASES = (  # name, batch, sequence, query heads, key/value heads, head size
    Case("one_document", 2, 128, 4, 4, 32),
    Case("packed", 2, 128, 4, 4, 64, documents=(50, 33, 45)),
    Case("grouped", 2, 192, 8, 2, 16, documents=(64, 100)),
    Case("one_kv_head", 1, 96, 6, 1, 80, documents=(7, 60)),
    Case("ragged", 3, 157, 3, 3, 24, documents=(1, 90, 60)),
    Case("padded_in_front", 1, 100, 2, 1, 32, documents=(70,), padded_in_front=True),
    Case("single_token", 2, 1, 2, 2, 8),
    Case("dropping", 2, 130, 4, 2, 16, documents=(70, 40), dropout_rate=0.3),
    Case("many_blocks", 1, 1100, 1, 1, 8, documents=(700, 350)),
)

# Documents of a packed row, as shares of it: web pages are mostly short, with a few long ones.
_SHARES = (0.30, 0.05, 0.12, 0.02, 0.20, 0.01, 0.08, 0.15)


def packed(seq_len: int) -> tuple[int, ...]:
    """Lengths of documents that fill all but about a hundredth of a row."""
    return tuple(int(share * 0.99 * seq_len) for share in _SHARES)


REAL_CASES = (  # heads are those of one GPU: of a shard where the name has `tp`
    Case("7b_t2048", 4, 2048, 32, 32, 128, documents=packed(2048)),
    Case("7b_t4096", 2, 4096, 32, 32, 128, documents=packed(4096)),
    Case("7b_t4096_whole", 2, 4096, 32, 32, 128),
    Case("7b_t4096_dropout", 2, 4096, 32, 32, 128, documents=packed(4096), dropout_rate=0.1),
    Case("13b_tp2_t4096", 2, 4096, 20, 20, 128, documents=packed(4096)),
    Case("34b_tp8_t4096", 4, 4096, 8, 1, 128, documents=packed(4096)),
    Case("70b_tp8_t8192", 2, 8192, 8, 1, 128, documents=packed(8192)),
    Case("70b_tp8_t8192_whole", 2, 8192, 8, 1, 128),
    Case("8b_t8192", 1, 8192, 32, 8, 128, documents=packed(8192)),
    Case("small_h64", 4, 4096, 12, 4, 64, documents=packed(4096)),
    Case("small_h64_whole", 4, 4096, 12, 4, 64),
)
"""One row of documents each; `_whole` means one document a row, which kernels without segments can serve too."""
