"""Shapes that every attention backend is tested and timed on."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np


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
