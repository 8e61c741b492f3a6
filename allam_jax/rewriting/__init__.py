"""Rewriting documents with a model: pieces, checks of what it gave, documents again. For alignment and translation."""
