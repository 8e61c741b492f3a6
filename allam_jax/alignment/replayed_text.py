"""Text that a model learns whole beside conversations, so that it does not forget it: samples without a prompt."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import grain
import numpy as np

from allam_jax.alignment.reply_masks import Sample
from allam_jax.alignment.settings import ReplaySettings
from allam_jax.data.batch import Encoder
from allam_jax.data.documents import DocumentSource
from allam_jax.errors import UserError


def replayed(
    settings: ReplaySettings, *, beside: int, tokenizer: Encoder, seq_len: int, seed: int
) -> Mapping[str, Iterator[Sample]]:
    """Source -> samples of its documents, which together have `settings.share` of all tokens.

    Args:
        settings: documents and their shares; relative weights of 0 give no samples.
        beside: tokens of the conversations of an epoch.
        tokenizer: of the model.
        seq_len: pairs of tokens of a row; a longer document is cut into several samples.
        seed: of the order in which documents are taken; those that come first are enough.

    Raises:
        UserError: a source holds no text.
    """
    wanted = beside * settings.share / (1 - settings.share)
    total = sum(source.weight for source in settings.sources.values())
    return {
        name: _samples(
            DocumentSource(Path(source.path), split=source.split),
            tokens=round(wanted * source.weight / total),
            name=name,
            tokenizer=tokenizer,
            seq_len=seq_len,
            seed=seed,
        )
        for name, source in settings.sources.items()
        if source.weight
    }


def _samples(
    source: DocumentSource, *, tokens: int, name: str, tokenizer: Encoder, seq_len: int, seed: int
) -> Iterator[Sample]:
    """Samples of `tokens` pairs of neighbouring tokens in all; documents come again once all have been taken."""
    left = tokens
    pass_ = 0
    while left > 0:
        before = left
        for text in grain.MapDataset.source(source).shuffle(seed=(seed + pass_) % 2**32):
            ids = np.asarray(tokenizer.encode(text, bos=True, eos=True), np.int32)
            for start in range(0, len(ids) - 1, seq_len):
                piece = ids[start : start + min(seq_len, left) + 1]
                yield Sample(piece, np.ones(len(piece), np.uint8))
                left -= len(piece) - 1
                if left <= 0:
                    return
        if left == before:
            raise UserError(f"config.replay.sources.{name}: no document has any text")
        pass_ += 1
