"""Opens a dataset directory as a random-access source of documents, for Grain."""

import bisect
import itertools
from pathlib import Path
from typing import Any, SupportsIndex

from allam_jax.corpus.found_files import DATASET_FILE, datasets_below
from allam_jax.corpus.shards import MANIFEST, REMEDY, check_shard, read_manifest
from allam_jax.errors import UserError, nearest
from allam_jax.files import sha256_of_json


class DocumentSource:
    """The texts of one split: `len(source)`, `source[i] -> str`. Reads any TFDS dataset of ArrayRecord shards.

    Attributes:
        fingerprint: hash of the split's content (for a dataset without our manifest: of its shard sizes).
    """

    def __init__(self, directory: str | Path, *, split: str):
        """Checks that every shard of the split exists, is complete, and has the expected number of records.

        Raises:
            UserError: no dataset, no such split, no feature `text`, or a shard that is damaged or missing.
        """
        import tensorflow_datasets as tfds  # here, because the import takes half a second

        self._directory = Path(directory)
        is_dataset = (self._directory / DATASET_FILE).is_file()
        if not is_dataset and (inside := datasets_below(self._directory)):
            raise UserError(f"{directory}: no dataset{inside}")
        manifest = read_manifest(self._directory)
        if not is_dataset:
            raise UserError(f"{directory}: no dataset here (no dataset_info.json); write one with the corpus task")
        try:
            builder = tfds.builder_from_directory(self._directory)
        except Exception as error:  # TFDS raises many types of errors for metadata that it cannot parse
            raise UserError(f"{directory}: not a readable TFDS dataset ({_one_line(error)})") from None
        if split not in builder.info.splits:
            raise UserError(f"{directory}: no split {split!r}; {nearest(split, sorted(builder.info.splits))}")
        if "text" not in builder.info.features:
            raise UserError(f"{directory}: no feature 'text'; it has {', '.join(sorted(builder.info.features))}")
        info = builder.info.splits[split]
        self._shards = [Path(path) for path in info.filepaths]
        self._ends = list(itertools.accumulate(info.shard_lengths))
        try:
            written = (
                {shard["file"]: shard["size"] for shard in manifest["splits"][split]["shards"]} if manifest else {}
            )
            sizes = [written[path.name] if written else None for path in self._shards]
        except (KeyError, TypeError) as error:
            raise UserError(
                f"{self._directory / MANIFEST}: does not fit {DATASET_FILE} ({error!r}); {REMEDY}"
            ) from None
        for path, documents, size in zip(self._shards, info.shard_lengths, sizes, strict=True):
            check_shard(path, documents=documents, size=size)
        try:
            self._records = builder.as_data_source(split)
        except (NotImplementedError, ValueError) as error:
            raise UserError(f"{directory}: no ArrayRecord, so it has no random access ({_one_line(error)})") from None
        lengths = [(path.name, path.stat().st_size) for path in self._shards]
        self.fingerprint: str = self.fingerprint_of(manifest["fingerprint"] if manifest else lengths, split=split)

    @staticmethod
    def fingerprint_of(content: Any, *, split: str) -> str:
        """The fingerprint of a split, given the manifest's (or the sizes of its shards)."""
        return sha256_of_json([content, split])

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: SupportsIndex) -> str:
        """The text of a document; UserError naming the shard if its record is damaged."""
        return self._record(index)["text"].decode()

    def fields(self, index: SupportsIndex) -> dict[str, str]:
        """All fields of a document that are texts, such as `id`, `source` and `language`; UserError as for its text."""
        return {name: value.decode() for name, value in self._record(index).items() if isinstance(value, bytes)}

    def _record(self, index: SupportsIndex) -> Any:
        try:
            return self._records[index]
        except RuntimeError as error:
            path = self._shards[bisect.bisect_right(self._ends, index.__index__())]
            raise UserError(
                f"{path}: damaged record ({_one_line(error)}); write the dataset again or fetch the file again"
            ) from None

    def __repr__(self) -> str:
        return f"DocumentSource({self._directory})"


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
