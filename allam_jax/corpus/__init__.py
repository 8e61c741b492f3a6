"""Text sources: a catalog of packages, readers for the user's own files, normalisation, document shards."""
