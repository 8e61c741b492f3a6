"""Writes documents as a TFDS dataset directory of ArrayRecord shards, and checks such a directory before it is read.

The directory holds `NAME-SPLIT.array_record-00000-of-00004` and so on; `dataset_info.json` and `features.json` of TFDS,
so that `tfds.builder_from_directory(directory).as_data_source("train")` reads it without TensorFlow; and
`manifest.json` with counts, sizes and hashes.
"""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

from allam_jax.checksums import find_list, write_list
from allam_jax.corpus.document import Document
from allam_jax.corpus.found_files import DATASET_FILE
from allam_jax.errors import UserError
from allam_jax.files import atomic_path, parse_json, read_json, sha256_of_file, sha256_of_json, unit_hash, write_json

MANIFEST = "manifest.json"
TFDS_FILES = (DATASET_FILE, "features.json")
REMEDY = "write the dataset again or fetch the file again"
SPLITS = ("train", "validation")
FIELDS = ("text", "id", "source", "language")
_TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"


def write_dataset(
    documents: Iterable[Document],
    *,
    directory: Path,
    name: str,
    validation_share: float = 0.02,
    seed: int = 0,
    shard_bytes: int = 256_000_000,
    metadata: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Writes the documents into a new dataset directory, which replaces an existing one; returns its manifest.

    The directory appears when everything is written. A hash of the seed and of the document's id decides whether a
    document goes to `validation`, the expected share of the documents (0: there is no such split). The other documents
    and their order do not matter. A shard is closed when it holds `shard_bytes` bytes of text. UserError as for
    `assemble`, or for an invalid name.
    """
    directory = Path(directory)
    check_name(name)
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{directory.name}-", dir=directory.parent) as part:
        with PartWriter(
            Path(part), validation_share=validation_share, seed=seed, shard_bytes=shard_bytes, dataset=directory
        ) as writer:
            for document in documents:
                writer.write({field: getattr(document, field) for field in FIELDS})
        return assemble(
            [(Path(part), writer.counts)],
            directory=directory,
            name=name,
            validation_share=validation_share,
            seed=seed,
            metadata=metadata,
        )


def check_name(name: str) -> None:
    """Raises UserError for an invalid name of a dataset."""
    if not (name.isascii() and name.isidentifier() and name.islower()):
        raise UserError(f"dataset name {name!r}: expected lower-case letters, digits and underscores, a letter first")


class PartWriter:
    """A context manager that writes a part of a dataset: shards of each split, under temporary names.

    Attributes:
        counts: at the end, `{split: {"words", "shards": [{"file", "documents", "bytes"}]}}`.
    """

    def __init__(self, directory: Path, *, validation_share: float, seed: int, shard_bytes: int, dataset: Path):
        """`directory` must exist and be empty; error messages name `dataset`, the directory of the whole dataset."""
        self.counts: dict[str, Any] = {}
        self._validation_share, self._seed, self._dataset = validation_share, seed, dataset
        wanted = SPLITS if validation_share > 0 else SPLITS[:1]
        self._writers = {split: _SplitWriter(directory, split=split, shard_bytes=shard_bytes) for split in wanted}

    def write(self, fields: Mapping[str, str]) -> None:
        """Appends a document, given as the fields of its record, to the split that a hash of its id selects."""
        validation = unit_hash(f"{self._seed}:{fields['id']}") < self._validation_share
        with disk_errors(self._dataset):
            self._writers["validation" if validation else "train"].write(fields)

    def __enter__(self) -> "PartWriter":
        return self

    def __exit__(self, exception: object, *_: object) -> None:
        if exception is None:
            with disk_errors(self._dataset):
                for writer in self._writers.values():
                    writer.close()
            self.counts = {split: writer.counts for split, writer in self._writers.items()}
        for writer in self._writers.values():
            with contextlib.suppress(RuntimeError, OSError):
                writer.close()


def assemble(
    parts: Sequence[tuple[Path, Mapping[str, Any]]],
    *,
    directory: Path,
    name: str,
    validation_share: float,
    seed: int = 0,
    metadata: Mapping[str, Any] | None = None,
    fields: Sequence[str] = FIELDS,
) -> dict[str, Any]:
    """Makes a dataset directory of the parts, in their order; it replaces an existing one. Returns its manifest.

    Args:
        parts: directory and counts of each `PartWriter`. Their files are linked, not moved, so that a run that is
            killed here can do this step again.
        directory: directory to write.
        name, validation_share, seed: of the dataset, as its parts were written.
        metadata: JSON-able facts to keep in the manifest.
        fields: names of the records' fields, which are all strings.

    Returns:
        `{"name", "splits": {split: {"documents", "bytes", "words", "shards": [{"file", "documents", "bytes", "size",
            "sha256"}]}}, "seed", "validation_share", "fingerprint", "metadata"}`; `bytes` are UTF-8 bytes of text.

    Raises:
        UserError: a split has no document, or the disk is full.
    """
    with atomic_path(directory) as temporary, disk_errors(directory):
        temporary.mkdir()
        splits = {}
        for split in SPLITS if validation_share > 0 else SPLITS[:1]:
            found = [(part / shard["file"], shard) for part, counts in parts for shard in counts[split]["shards"]]
            shards = []
            for number, (path, shard) in enumerate(found):
                file = f"{name}-{split}.array_record-{number:05d}-of-{len(found):05d}"
                _link(path, temporary / file)
                shards.append(shard | {"file": file, "size": path.stat().st_size, "sha256": sha256_of_file(path)})
            splits[split] = {
                "documents": sum(shard["documents"] for shard in shards),
                "bytes": sum(shard["bytes"] for shard in shards),
                "words": sum(counts[split]["words"] for _, counts in parts),
                "shards": shards,
            }
        for split, counts in splits.items():
            if not counts["documents"]:
                total = sum(other["documents"] for other in splits.values())
                raise UserError(
                    f"{name}: the split {split!r} has no document ({total} documents in all, validation share "
                    f"{validation_share}); give more documents, or another validation_share"
                )
        manifest = {
            "name": name,
            "splits": splits,
            "seed": seed,
            "validation_share": validation_share,
            "fingerprint": sha256_of_json(splits),
            "metadata": dict(metadata or {}),
        }
        _write_tfds_metadata(temporary, name=name, splits=splits, fields=fields)
        write_json(temporary / MANIFEST, manifest)
        write_list(temporary)
    return manifest


def read_manifest(directory: Path) -> dict[str, Any] | None:
    """The manifest of a dataset directory, or None for a TFDS dataset that was made elsewhere."""
    directory = Path(directory)
    keys = {"name": str, "splits": dict, "fingerprint": str}
    files = find_list(directory, remedy=REMEDY)
    if files is None and not (directory / MANIFEST).exists():
        return None
    if files is None:  # written before there were checksums
        return read_json(directory / MANIFEST, keys=keys)
    files.check(remedy=REMEDY, reads=lambda name: ".array_record" in name or name.endswith(".json"))
    for name in TFDS_FILES:
        files.read_bytes(name, remedy=REMEDY)
    return parse_json(files.read_bytes(MANIFEST, remedy=REMEDY), path=directory / MANIFEST, keys=keys)


def check_shard(path: Path, *, documents: int, size: int | None = None) -> None:
    """Raises UserError unless the file exists, has this size (if known), opens, and holds this many records."""
    if not path.exists():
        raise UserError(f"{path}: no such shard; {REMEDY}")
    if size is not None and path.stat().st_size != size:
        raise UserError(f"{path}: damaged shard ({path.stat().st_size} bytes instead of {size}); {REMEDY}")
    reader = ArrayRecordReader(str(path))
    try:
        if not reader.ok():
            raise UserError(f"{path}: damaged or cut short, not a readable ArrayRecord file; {REMEDY}")
        if reader.num_records() != documents:
            raise UserError(f"{path}: {reader.num_records()} records instead of {documents}; {REMEDY}")
    finally:
        # close() raises an error if the reader failed to open.
        if reader.ok():
            reader.close()


class _SplitWriter:
    """Writes records into numbered shards `SPLIT-NUMBER`."""

    def __init__(self, directory: Path, *, split: str, shard_bytes: int):
        self._directory, self._split, self._shard_bytes = directory, split, shard_bytes
        self._writer: ArrayRecordWriter | None = None
        self.counts: dict[str, Any] = {"words": 0, "shards": []}

    def write(self, fields: Mapping[str, str]) -> None:
        shards = self.counts["shards"]
        if self._writer is None:
            # Grain reads single records fast only if each group holds one record.
            path = self._directory / f"{self._split}-{len(shards)}"
            self._writer = ArrayRecordWriter(str(path), "group_size:1")
            shards.append({"file": path.name, "documents": 0, "bytes": 0})
        self._writer.write(_example(fields))
        shards[-1]["documents"] += 1
        shards[-1]["bytes"] += len(fields["text"].encode())
        self.counts["words"] += len(fields["text"].split())
        if shards[-1]["bytes"] >= self._shard_bytes:
            self.close()

    def close(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.close()


def _link(path: Path, target: Path) -> None:
    try:
        os.link(path, target)
    except OSError:  # the file system has no hard links
        shutil.copyfile(path, target)


def _example(fields: Mapping[str, str]) -> bytes:
    """A serialised tf.train.Example of strings.

    TFDS's own serialisation is not used, because protobuf writes maps in an order that differs between processes. Here
    the same documents give the same bytes. Every message in an Example has field 1, except the value of a map's entry
    (2):
          Example{1: Features{1: repeated Entry{1: key, 2: Feature{1: BytesList{1: repeated bytes}}}}}
    """
    entries = [
        _message(1, _message(1, key.encode()) + _message(2, _message(1, _message(1, text.encode()))))
        for key, text in fields.items()
    ]
    return _message(1, b"".join(entries))


def _message(field: int, payload: bytes) -> bytes:
    """A length-delimited protobuf field: tag, length as a varint, payload."""
    length = len(payload)
    if length <= 0x7F:
        return bytes((field << 3 | 2, length)) + payload
    header = bytearray([field << 3 | 2])
    while length > 0x7F:
        header.append(length & 0x7F | 0x80)
        length >>= 7
    header.append(length)
    return bytes(header) + payload


def _write_tfds_metadata(directory: Path, *, name: str, splits: Mapping[str, Any], fields: Sequence[str]) -> None:
    import tensorflow_datasets as tfds  # here, because the import takes half a second

    def split_info(split: str, counts: Mapping[str, Any]) -> Any:
        template = tfds.core.ShardedFileTemplate(
            data_dir=directory, dataset_name=name, split=split, filetype_suffix="array_record", template=_TEMPLATE
        )
        lengths = [shard["documents"] for shard in counts["shards"]]
        return tfds.core.SplitInfo(
            name=split, shard_lengths=lengths, num_bytes=counts["bytes"], filename_template=template
        )

    tfds.folder_dataset.write_metadata(
        data_dir=directory,
        features=tfds.features.FeaturesDict({field: tfds.features.Text() for field in fields}),
        split_infos=[split_info(split, counts) for split, counts in splits.items()],
        filename_template=_TEMPLATE,
        check_data=False,  # TFDS's own check needs TensorFlow
    )


@contextlib.contextmanager
def disk_errors(directory: Path) -> Iterator[None]:
    """Turns a failed write, for which ArrayRecord raises RuntimeError, into a UserError that names the directory."""
    try:
        yield
    except (RuntimeError, OSError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{directory}: cannot write the dataset ({reason}); is the disk full?") from None
