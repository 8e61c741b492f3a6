"""How many bytes of text a training run has read: what runs with different tokenizers are compared by."""

from collections.abc import Iterator

import numpy as np

from allam_jax.data.loader import Loader
from allam_jax.tokenizer.tokenizer import Tokenizer


def bytes_of_steps(loader: Loader, *, tokenizer: Tokenizer) -> Iterator[dict[str, int]]:
    """For each batch the UTF-8 bytes of its targets by source; control tokens have none."""
    ids = range(tokenizer.vocab_size)
    sizes_V = np.array([0 if tokenizer.is_special(index) else len(tokenizer.token_bytes(index)) for index in ids])
    for batch in loader:
        bytes_BT = sizes_V[batch["targets"]] * (batch["loss_weights"] > 0)
        counts = np.bincount(batch["source_ids"].ravel(), bytes_BT.ravel(), minlength=len(loader.source_names))
        yield dict(zip(loader.source_names, counts.astype(int).tolist(), strict=True))
