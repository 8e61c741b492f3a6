"""Reading whole texts out of document shards, for tasks that need text and not batches."""

import functools
from collections.abc import Callable, Iterator, Mapping

from allam_jax.config import require
from allam_jax.corpus.settings import TextsSettings
from allam_jax.data.documents import DocumentSource


def open_texts(sources: Mapping[str, TextsSettings], *, key: str) -> dict[str, DocumentSource]:
    """The dataset of each of `sources`; UserError for one that cannot be read. `key` names the section in errors."""
    require(sources, key=key, hint="name at least one source")
    return {name: DocumentSource(source.path, split=source.split) for name, source in sources.items()}


def read_texts(sources: Mapping[str, TextsSettings], *, key: str) -> dict[str, list[str]]:
    """The documents of each of `sources`, in stored order, up to their max_bytes.

    `key` names the config section in errors.
    """
    return {name: list(read()) for name, read in iterate_texts(sources, key=key).items()}


def iterate_texts(sources: Mapping[str, TextsSettings], *, key: str) -> dict[str, Callable[[], Iterator[str]]]:
    """For each of `sources`, what gives its documents anew, one at a time, up to its max_bytes."""
    opened = open_texts(sources, key=key)
    return {
        name: functools.partial(_first_bytes, documents, sources[name].max_bytes) for name, documents in opened.items()
    }


def lines_of(texts: list[str]) -> list[str]:
    """All non-blank lines."""
    return [line for text in texts for line in text.splitlines() if line.strip()]


def _first_bytes(documents: DocumentSource, max_bytes: int) -> Iterator[str]:
    total = 0
    for index in range(len(documents)):
        text = documents[index]
        yield text
        total += len(text.encode())
        if max_bytes and total >= max_bytes:
            return
