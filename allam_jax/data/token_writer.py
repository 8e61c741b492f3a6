"""Writes a token cache (`token_cache.py`) in shards, each atomically, so that a killed run continues with the next.

The files depend on the documents and the tokenizer alone, not on interruptions or on the number of cores
(`encode_batch` uses all). The directory gets its name at the end; until then, it is `.NAME.unfinished`.
"""

import os
import shutil
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from allam_jax.checksums import entry_of, write_list
from allam_jax.data.batch import Encoder
from allam_jax.data.documents import DocumentSource
from allam_jax.data.token_cache import MANIFEST, REMEDY, VERSION, is_token_cache, read_cache, shard_file
from allam_jax.errors import UserError
from allam_jax.files import atomic_path, read_json, sweep, write_array, write_json

SHARD_TOKENS = 2**26  # 128 MiB of uint16
Entries = dict[str, tuple[int, str]]  # files with their sizes and hashes
_BATCH_CHARACTERS = 4_000_000  # for one call of the tokenizer: enough work for all cores, and little memory


def write_tokens(
    documents: str | Path,
    *,
    split: str,
    tokenizer: Encoder,
    directory: Path,
    shard_tokens: int = SHARD_TOKENS,
) -> dict[str, Any]:
    """Tokenises a split of a dataset directory into a cache directory; returns its manifest.

    A finished cache of the same documents, tokenizer and shard size is kept, after its files have been compared with
    their hashes. An unfinished one is continued. Any other cache is replaced, also a damaged one. A shard is closed
    when it holds `shard_tokens` tokens.

    The manifest is `{"version", "tokenizer", "dataset", "origin", "split", "documents", "tokens", "targets", "dtype",
    "shards"}`. `targets` is the number of tokens that one epoch trains on. A shard is `{"documents", "tokens"}`.

    UserError if there is no such dataset or split, or the split has no documents.
    """
    source = open_documents(documents, split=split)
    dtype = np.dtype("<u2" if tokenizer.vocab_size <= 2**16 else "<u4")
    plan = {
        "version": VERSION,
        "tokenizer": tokenizer.fingerprint,
        "dataset": source.fingerprint,
        "split": split,
        "dtype": dtype.str,
        "shard_tokens": shard_tokens,
    }
    directory = Path(directory)
    if is_token_cache(directory):
        try:
            manifest, files = read_cache(directory)
            if all(manifest.get(key) == value for key, value in plan.items()):
                files.check_bytes(remedy=REMEDY)
                return manifest
        except UserError as error:
            logging.warning("%s: this does so, and replaces the cache", error)
    unfinished = _open_unfinished(directory, plan)
    shards: list[dict[str, Any]] = []
    entries: Entries = {}  # of all shards
    while (written := _written_shard(unfinished, split, len(shards))) is not None:
        shards.append(written[0])
        entries |= written[1]
    first = sum(shard["documents"] for shard in shards)
    if shards:
        logging.info("%s: %d shards are there, going on with document %d", directory, len(shards), first)
    for ids in _shards(encoded(source, tokenizer=tokenizer, first=first), shard_tokens=shard_tokens):
        shard, files_of_shard = _write_shard(unfinished, split, len(shards), ids, dtype=dtype)
        write_json(_record(unfinished, len(shards)), shard | {"files": files_of_shard})
        shards.append(shard)
        entries |= files_of_shard
    total = sum(shard["tokens"] for shard in shards)
    manifest = plan | {
        "origin": str(Path(documents).absolute()),
        "documents": len(source),
        "tokens": total,
        "targets": total - len(source),
        "shards": shards,
    }
    for record in unfinished.glob("?????.json"):
        record.unlink()
    (unfinished / "plan.json").unlink()
    write_json(unfinished / MANIFEST, manifest)
    write_list(unfinished, known=entries)
    with atomic_path(directory) as temporary:
        os.replace(unfinished, temporary)
    return manifest


def open_documents(documents: str | Path, *, split: str) -> DocumentSource:
    """The documents to tokenise; UserError if there is no such dataset or split, or the split has no documents."""
    source = DocumentSource(documents, split=split)
    if not len(source):
        raise UserError(f"{documents}: no documents in split {split!r} to tokenise")
    return source


def _open_unfinished(directory: Path, plan: dict[str, Any]) -> Path:
    """The directory to write in, emptied if its content belongs to another plan."""
    unfinished = directory.with_name(f".{directory.name}.unfinished")
    plan_file = unfinished / "plan.json"
    if unfinished.exists() and not _has_plan(plan_file, plan):
        shutil.rmtree(unfinished)
    unfinished.mkdir(parents=True, exist_ok=True)
    sweep(unfinished)
    write_json(plan_file, plan)
    return unfinished


def _has_plan(path: Path, plan: dict[str, Any]) -> bool:
    try:
        return read_json(path) == plan
    except UserError:  # absent, or damaged by what killed the run
        return False


def encoded(source: DocumentSource, *, tokenizer: Encoder, first: int = 0) -> Iterator[np.ndarray]:
    """Yields the ids (BOS text EOS) of every document from number `first` on, tokenised on all cores."""
    texts: list[str] = []
    characters = 0
    for index in range(first, len(source)):
        texts.append(source[index])
        characters += len(texts[-1])
        if characters >= _BATCH_CHARACTERS or index == len(source) - 1:
            for ids in tokenizer.encode_batch(texts, bos=True, eos=True):
                yield np.asarray(ids, np.uint32)
            texts, characters = [], 0


def _shards(documents: Iterator[np.ndarray], *, shard_tokens: int) -> Iterator[list[np.ndarray]]:
    held: list[np.ndarray] = []
    size = 0
    for ids in documents:
        held.append(ids)
        size += len(ids)
        if size >= shard_tokens:
            yield held
            held, size = [], 0
    if held:
        yield held


def _record(unfinished: Path, number: int) -> Path:
    """What is noted of a finished shard until the cache is complete."""
    return unfinished / f"{number:05d}.json"


def _written_shard(
    unfinished: Path, split: str, number: int
) -> tuple[dict[str, Any], dict[str, tuple[int, str]]] | None:
    """A shard that an earlier start has finished, and the entries of its files; None if it is not there, or damaged."""
    try:
        record = read_json(_record(unfinished, number), keys={"documents": int, "tokens": int, "files": dict})
        entries = {name: entry_of(unfinished / name) for name in _names(split, number)}
    except (UserError, OSError):
        return None
    noted = {name: list(entry) for name, entry in entries.items()}
    return ({key: record[key] for key in ("documents", "tokens")}, entries) if record["files"] == noted else None


def _names(split: str, number: int) -> list[str]:
    return [shard_file(split, number, kind) for kind in ("tokens", "index")]


def _write_shard(
    directory: Path, split: str, number: int, documents: list[np.ndarray], *, dtype: np.dtype
) -> tuple[dict[str, Any], Entries]:
    """Gives the shard and the entries of its files."""
    tokens = np.concatenate(documents).astype(dtype)
    ends = np.cumsum([len(ids) for ids in documents], dtype=np.uint64)
    starts = np.concatenate([[np.uint64(0)], ends[:-1]])
    checksums = [zlib.crc32(tokens[start:end].data) for start, end in zip(starts, ends, strict=True)]
    index = np.stack([ends, np.asarray(checksums, np.uint64)], axis=1).astype("<u8")
    names = _names(split, number)
    for name, array in zip(names, (tokens, index), strict=True):
        write_array(directory / name, array)
    entries = {name: entry_of(directory / name) for name in names}
    return {"documents": len(documents), "tokens": len(tokens)}, entries
