"""Records of conversations: JSON Lines, JSON, Parquet, and datasets that Hugging Face's library has saved to disk."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow
from absl import logging

from allam_jax.alignment.conversations import FIELDS
from allam_jax.corpus.found_files import find_files, kind_of
from allam_jax.corpus.parquet_records import column_names, parquet_records, plain_values
from allam_jax.corpus.record_formats import Record, json_records
from allam_jax.errors import UserError
from allam_jax.files import read_json, shown

_LARGEST_ROW = 1 << 26  # bytes
_SAVED = "state.json"  # of one split, saved by `datasets.Dataset.save_to_disk`; names its Arrow files
_JSON = ".json"
_SPLITS = "dataset_dict.json"  # of several


def chat_files(path: str) -> list[Path]:
    """The files with records at a path, in the order in which they are read.

    Args:
        path: a file, a folder of files, a pattern, or what `datasets` has saved (of several splits, that of `train`).

    Raises:
        UserError: nothing is there that holds conversations.
    """
    place = Path(path)
    if (place / _SPLITS).is_file():
        splits = read_json(place / _SPLITS, keys={"splits": list})["splits"]
        if "train" not in splits:
            raise UserError(f"{place}: has the splits {', '.join(map(str, splits))}; give the folder of one of them")
        place = place / "train"
    if (place / _SAVED).is_file():
        listed = read_json(place / _SAVED, keys={"_data_files": list})["_data_files"]
        if not all(isinstance(entry, dict) and isinstance(entry.get("filename"), str) for entry in listed):
            raise UserError(
                f"{place / _SAVED}: _data_files is no list of objects with 'filename'; save the dataset again"
            )
        return [place / entry["filename"] for entry in listed]
    files, skipped = find_files(path, also=(_JSON,))
    if place.is_dir():  # in which other JSON files describe the data
        others = [file for file in files if file.suffix.lower() == _JSON and not _begins_list(file)]
        files = [file for file in files if file not in others]
        skipped = skipped | ({"JSON without a list of records": others} if others else {})
        if not files:
            raise UserError(f"{place}: no conversations in this folder ({shown(others[0])} is no list of records)")
    for reason, paths in skipped.items():
        logging.warning("%s: %d files are not read: %s (%s)", place, len(paths), reason, shown(paths[0]))
    for file in files:
        if file.suffix.lower() != _JSON and kind_of(file) not in ("jsonl", "parquet"):
            raise UserError(f"{file}: conversations are read from JSON Lines, JSON, Parquet and saved datasets")
    return files


def _begins_list(file: Path) -> bool:
    with open(file, encoding="utf-8-sig", errors="replace") as opened:
        return opened.read(1 << 12).lstrip().startswith("[")


def chat_records(file: Path, *, every_column: bool = False) -> Iterator[Record]:
    """The records of a file, each a dict, or the reason why it cannot be read.

    Of Parquet the columns of conversations, or `every_column`, whatever it is called.
    """
    if file.suffix.lower() == _JSON:
        return _json_list(file)
    if file.suffix == ".arrow":
        return _arrow_records(file)
    if kind_of(file) == "jsonl":
        return json_records(file, limit=_LARGEST_ROW)
    names = column_names(file)
    known = [name for name in FIELDS if name in names]
    if every_column:
        known = list(dict.fromkeys([*known, *names]))
    if not known:
        raise UserError(f"{file}: has no column of a conversation, such as messages; it has {', '.join(names)[:200]}")
    return parquet_records(file, text_field=known[0], optional=known[1:], limit=_LARGEST_ROW)


def _json_list(file: Path) -> Iterator[Record]:
    """The elements of a JSON file that holds one list."""
    try:
        values: Any = json.loads(file.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file}: not JSON ({str(error)[:100]}); JSON Lines are read as .jsonl") from None
    if not isinstance(values, list):
        raise UserError(f"{file}: expected a list of records; JSON Lines are read as .jsonl")
    return iter(value if isinstance(value, dict) else "not a JSON object" for value in values)


def _arrow_records(file: Path) -> Iterator[Record]:
    try:
        with pyarrow.memory_map(str(file)) as source:
            for batch in pyarrow.ipc.open_stream(source):
                names = batch.schema.names
                values = [plain_values(column, limit=_LARGEST_ROW) for column in batch.columns]
                yield from (dict(zip(names, row, strict=True)) for row in zip(*values, strict=True))
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(
            f"{file}: damaged or not Arrow ({' '.join(str(error).split())[:200]}); fetch it again"
        ) from None
