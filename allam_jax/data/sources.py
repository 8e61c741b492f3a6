"""The path of a source: documents, which are tokenised while reading, or a token cache; and the number of tokens."""

from collections.abc import Mapping

import grain
import numpy as np

from allam_jax.data.batch import Encoder
from allam_jax.data.documents import DocumentSource
from allam_jax.data.settings import SourceSettings
from allam_jax.data.token_cache import TokenSource, is_token_cache
from allam_jax.data.token_writer import encoded
from allam_jax.errors import UserError


def open_source(name: str, settings: SourceSettings, *, tokenizer: str) -> DocumentSource | TokenSource:
    """Opens a source; UserError if it has no document, or is the cache of another tokenizer (a fingerprint)."""
    path, split = settings.path, settings.split
    if not path:
        raise UserError(f"data: source {name} has no path; expected a dataset directory or a token cache")
    cached = is_token_cache(path)
    source = TokenSource(path, split=split, tokenizer=tokenizer) if cached else DocumentSource(path, split=split)
    if not len(source):
        raise UserError(f"data: source {name} at {path} has no documents")
    return source


def tokenised(documents: grain.MapDataset, *, of: DocumentSource | TokenSource, tokenizer: Encoder) -> grain.MapDataset:
    """A dataset of elements of a source, as arrays of ids: BOS text EOS."""
    if isinstance(of, TokenSource):
        return documents
    return documents.map(lambda text: np.asarray(tokenizer.encode(text, bos=True, eos=True), np.int32))


def targets_of(source: DocumentSource | TokenSource, *, tokenizer: Encoder) -> int:
    """The number of tokens that one epoch of a source trains on: known to a cache, counted by tokenising documents."""
    if isinstance(source, TokenSource):
        return source.targets
    return sum(len(ids) - 1 for ids in encoded(source, tokenizer=tokenizer))


def stated_weights(sources: Mapping[str, SourceSettings], *, targets: Mapping[str, int]) -> dict[str, float]:
    """The weight of each source, from a config that gives either weights or epochs.

    Epochs say how often a source is used, relative to the others. The weight of a source is then its epochs times its
    tokens. `targets` has the tokens of one epoch of each source; configs with weights do not need it. UserError if only
    some sources have epochs, or if the tokens of a source are unknown.
    """
    by_epochs = [name for name, source in sources.items() if source.epochs]
    if not by_epochs:
        return {name: float(source.weight) for name, source in sources.items()}
    for name, source in sources.items():
        if not source.epochs:
            raise UserError(
                f"data.sources.{name}: has no epochs, but {by_epochs[0]} has; state all sources by epochs, or all by "
                f"weight (epochs 0)"
            )
        if not targets.get(name):
            raise UserError(
                f"data.sources.{name}: epochs need the number of its tokens; set its path to a token cache (task "
                f"tokenize), or set its tokens"
            )
    return {name: float(source.epochs) * targets[name] for name, source in sources.items()}
