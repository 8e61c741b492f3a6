"""Token ids of documents on disk, written once, mapped into memory, and read at random by the loader instead of text.

A cache directory holds one split of one dataset, tokenised by one tokenizer: `tokens.json` (the manifest), `files.json`
(the sizes and hashes of its files) and, for each shard,

    SPLIT-00000.tokens.npy  uint16 or uint32 [tokens]: the ids of its documents one after another, each BOS text EOS
    SPLIT-00000.index.npy   uint64 [documents, 2]: the end of each document, and the CRC-32 of its ids' bytes

The ids of a document are those of `tokenizer.encode(text, bos=True, eos=True)`, so batches from the cache and from the
text are equal bit for bit. The order of documents, the mixture and the batch are still chosen at training time.
"""

import bisect
import itertools
import zlib
from pathlib import Path
from typing import Any, SupportsIndex

import numpy as np

from allam_jax.checksums import FileList
from allam_jax.corpus.shards import read_manifest
from allam_jax.data.documents import DocumentSource
from allam_jax.errors import UserError
from allam_jax.files import Keys, check_shape, read_array

MANIFEST = "tokens.json"
VERSION = 2
REMEDY = "run the tokenize task again"


def is_token_cache(directory: str | Path) -> bool:
    """Whether a directory holds tokens rather than documents."""
    return (Path(directory) / MANIFEST).is_file()


class TokenSource:
    """The token ids of the documents of one split: `len(source)`, `source[i] -> int32 [ids]`.

    Attributes:
        fingerprint: `DocumentSource.fingerprint` of the documents, so that a run may change between text and cache.
        targets: number of tokens that one epoch trains on: all ids except the BOS of each document.
        tokenizer: fingerprint of the tokenizer that made the ids.
    """

    def __init__(self, directory: str | Path, *, split: str, tokenizer: str | None = None):
        """Opens a cache directory; `tokenizer` is the fingerprint that it must have, or None for any.

        Raises:
            UserError: no cache, another split or tokenizer, documents that have changed since, files missing or cut.
        """
        self._directory = Path(directory)
        manifest, files = read_cache(self._directory)
        if manifest["split"] != split:
            raise UserError(f"{directory}: holds the tokens of split {manifest['split']!r}, not of {split!r}; {REMEDY}")
        if tokenizer is not None and manifest["tokenizer"] != tokenizer:
            raise UserError(
                f"{directory}: made by tokenizer {manifest['tokenizer'][:12]}, but this run's is {tokenizer[:12]}; "
                f"{REMEDY} with this tokenizer, or name the one that made it"
            )
        self.fingerprint: str = manifest["dataset"]
        self.targets: int = manifest["targets"]
        self.tokenizer: str = manifest["tokenizer"]
        _check_origin(manifest, directory=self._directory)
        self._shards: list[dict[str, Any]] = manifest["shards"]
        self._dtype = np.dtype(manifest["dtype"])
        self._split = split
        files.check(remedy=REMEDY)
        self._ends = list(itertools.accumulate(shard["documents"] for shard in self._shards))
        self._mapped: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: SupportsIndex) -> np.ndarray:
        """The ids of a document; UserError (naming the file) if its bytes have changed on disk."""
        position = index.__index__()
        if not 0 <= position < len(self):
            raise IndexError(position)
        number = bisect.bisect_right(self._ends, position)
        tokens, documents = self._map(number)
        local = position - (self._ends[number - 1] if number else 0)
        start = int(documents[local - 1, 0]) if local else 0
        end, checksum = (int(value) for value in documents[local])
        ids = tokens[start:end]
        if zlib.crc32(ids.data) != checksum:
            raise UserError(f"{self._path(number, 'tokens')}: damaged tokens of document {local}; {REMEDY}")
        return ids.astype(np.int32)

    def __repr__(self) -> str:
        return f"TokenSource({self._directory})"

    def _map(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        if number not in self._mapped:
            arrays = []
            for kind in ("tokens", "index"):
                arrays.append(read_array(self._path(number, kind), remedy=REMEDY, mapped=True))
            shard = self._shards[number]
            wanted = [((shard["tokens"],), self._dtype), ((shard["documents"], 2), np.dtype("<u8"))]
            for kind, array, (shape, dtype) in zip(("tokens", "index"), arrays, wanted, strict=True):
                if (array.shape, array.dtype) != (shape, dtype) or not array.flags.c_contiguous:
                    found = f"{array.dtype} of shape {array.shape} instead of {dtype} of shape {shape}"
                    raise UserError(f"{self._path(number, kind)}: damaged header ({found}); {REMEDY}")
            self._mapped[number] = (arrays[0], arrays[1])
        return self._mapped[number]

    def _path(self, number: int, kind: str) -> Path:
        return self._directory / shard_file(self._split, number, kind)


def shard_file(split: str, number: int, kind: str) -> str:
    """The name of a shard's file; `kind` is `tokens` or `index`."""
    return f"{split}-{number:05d}.{kind}.npy"


def read_cache(directory: Path) -> tuple[dict[str, Any], FileList]:
    """The manifest of a token cache and the list of its files; UserError if damaged or of another version."""
    files = FileList.read(directory, remedy=REMEDY)
    manifest = files.read_json(MANIFEST, remedy=REMEDY)
    if manifest.get("version") != VERSION:
        raise UserError(f"{directory}: tokens of version {manifest.get('version')}, not {VERSION}; {REMEDY}")
    keys: Keys = dict.fromkeys(("split", "tokenizer", "dataset", "origin", "dtype"), str) | {
        "shards": list,
        **dict.fromkeys(("targets", "documents", "tokens"), int),
    }
    path = Path(directory) / MANIFEST
    check_shape(manifest, kind=dict, keys=keys, where=f"{path}:")
    for number, shard in enumerate(manifest["shards"]):
        check_shape(shard, kind=dict, keys={"documents": int, "tokens": int}, where=f"{path}: shard {number}:")
        for kind in ("tokens", "index"):
            if (name := shard_file(manifest["split"], number, kind)) not in files.files:
                raise UserError(f"{path}: {name} is not in the list of files; {REMEDY}")
    return manifest, files


def _check_origin(manifest: dict[str, Any], *, directory: Path) -> None:
    """Raises UserError if the documents are still at their path but have changed. They may also be gone."""
    origin = Path(manifest["origin"])
    documents = read_manifest(origin)
    if documents is None:
        return
    if DocumentSource.fingerprint_of(documents["fingerprint"], split=manifest["split"]) != manifest["dataset"]:
        raise UserError(f"{directory}: the documents in {origin} have changed since they were tokenised; {REMEDY}")
