"""Task `corpus`: every source becomes a dataset directory of document shards, `workdir/NAME`."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from absl import logging
from ml_collections import ConfigDict

from allam_jax.config import require, to_dict
from allam_jax.corpus import catalog
from allam_jax.corpus.document import Document
from allam_jax.corpus.normalise import normalise_documents
from allam_jax.corpus.readers import FileReader
from allam_jax.corpus.shards import read_manifest, write_dataset
from allam_jax.errors import UserError


def run(config: ConfigDict, workdir: Path) -> dict[str, Any]:
    """Reads, normalises and writes each of `config.corpus.sources`; returns counts by source and split."""
    require(config.corpus.sources, key="corpus.sources", hint="name at least one source")
    return {
        name: _write(name, source, seed=config.seed, workdir=workdir) for name, source in config.corpus.sources.items()
    }


def _write(name: str, source: ConfigDict, *, seed: int, workdir: Path) -> dict[str, Any]:
    facts = to_dict(source)
    manifest = read_manifest(workdir / name)
    if manifest is None or (manifest["metadata"]["source"], manifest["seed"]) != (facts, seed):
        reader = _open(name, source)
        documents = _first_bytes(normalise_documents(reader, remove=source.remove), limit=source.max_bytes)
        manifest = write_dataset(
            documents,
            directory=workdir / name,
            name=name,
            validation_share=source.validation_share,
            seed=seed,
            metadata={"source": facts},
        )
        if isinstance(reader, FileReader):
            for file, file_counts in reader.counts.items():
                logging.info("%s: %s", file, file_counts)
    counts = {
        split: {key: values[key] for key in ("documents", "bytes", "words")}
        for split, values in manifest["splits"].items()
    }
    logging.info("corpus %s: %s", name, counts)
    return counts


def _open(name: str, source: ConfigDict) -> Iterable[Document]:
    key = f"config.corpus.sources.{name}"
    if bool(source.catalog) == bool(source.path):
        raise UserError(f"{key}: give either catalog (a source of the catalog) or path (your own files)")
    if source.catalog:
        return catalog.documents(source.catalog)
    if not source.language:
        raise UserError(f"{key}.language is empty: give the ISO 639-1 code of the texts, such as ar")
    return FileReader(
        source.path,
        source=name,
        language=source.language,
        text_field=source.text_field,
        text_unit=source.text_unit,
        max_bad_share=source.max_bad_share,
    )


def _first_bytes(documents: Iterable[Document], *, limit: int) -> Iterator[Document]:
    total = 0
    for document in documents:
        yield document
        total += len(document.text.encode())
        if limit and total >= limit:
            return
