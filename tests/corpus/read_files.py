"""Reads files of one source, for tests of all their kinds."""

import bz2
import gzip
import json
import lzma

import zstandard

from allam_jax.corpus.readers import FileReader
from allam_jax.corpus.settings import DocumentsSettings

TEXTS = ["مرحبا بالعالم", "hello", "سطر\nثان", "x" * 5000]
JSONL = "".join(json.dumps({"text": text, "id": number}) + "\n" for number, text in enumerate(TEXTS)).encode()


def read(path, *, fields=(), **settings):
    settings = {"language": "ar", "max_bad_share": 0.0} | settings
    reader = FileReader(DocumentsSettings(path=str(path), **settings), source="s", fields=fields)
    return reader, list(reader)


def compress(content: bytes, suffix: str) -> bytes:
    by_suffix = {".gz": gzip.compress, ".zst": zstandard.compress, ".bz2": bz2.compress, ".xz": lzma.compress}
    return by_suffix[suffix](content) if suffix else content
