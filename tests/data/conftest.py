"""The small corpus on disk."""

import pytest
from small_corpus import TEXTS, ByteTokenizer

from allam_jax.corpus.document import Document
from allam_jax.corpus.shards import write_dataset


@pytest.fixture(scope="session")
def tokenizer():
    return ByteTokenizer()


@pytest.fixture(scope="session")
def datasets(tmp_path_factory):
    """Three sources (`code` has one document per shard), and `split` with the documents of `en` in two splits."""
    root = tmp_path_factory.mktemp("datasets")
    for name, texts in TEXTS.items():
        documents = [Document(text=text, id=str(i), source=name, language="en") for i, text in enumerate(texts)]
        shard_bytes = 1 if name == "code" else 3000
        write_dataset(documents, directory=root / name, name=name, validation_share=0, shard_bytes=shard_bytes)
    documents = [Document(text=text, id=str(i), source="en", language="en") for i, text in enumerate(TEXTS["en"])]
    write_dataset(documents, directory=root / "split", name="split", validation_share=0.3)
    return root
