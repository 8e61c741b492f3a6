"""Reading whole texts out of document shards, for tasks that need text and not batches."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from allam_jax.config import require
from allam_jax.corpus.settings import TextsSettings
from allam_jax.data.documents import DocumentSource


def read_texts(sources: Mapping[str, TextsSettings], *, key: str) -> dict[str, list[str]]:
    """The documents of each of `sources`, in stored order, up to their max_bytes.

    `key` names the config section in errors.
    """
    require(sources, key=key, hint="name at least one source")
    return {name: list(_first_bytes(source)) for name, source in sources.items()}


def lines_of(texts: list[str]) -> list[str]:
    """All non-blank lines."""
    return [line for text in texts for line in text.splitlines() if line.strip()]


def _first_bytes(source: TextsSettings) -> Iterator[str]:
    documents = DocumentSource(Path(source.path), split=source.split)
    total = 0
    for index in range(len(documents)):
        text = documents[index]
        yield text
        total += len(text.encode())
        if source.max_bytes and total >= source.max_bytes:
            return
