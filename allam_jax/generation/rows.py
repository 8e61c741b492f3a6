"""Rows with prompts: JSON Lines, Parquet, CSV or text files, or a dataset of documents, in a fixed order."""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from allam_jax.corpus.found_files import DATASET_FILE, find_files, kind_of
from allam_jax.corpus.record_formats import Record, Unreadable, csv_records, json_records, text_records
from allam_jax.data.documents import DocumentSource
from allam_jax.errors import UserError
from allam_jax.files import json_text

MESSAGES = "messages"  # the field of a conversation, in place of a prompt
_LARGEST_ROW = 1 << 26  # bytes
_OWN = frozenset({"row", "prompt", MESSAGES, "answers", "prompt_tokens", "error"})  # fields of every answer


@dataclasses.dataclass(frozen=True)
class Prompt:
    """What a model is asked in one row: a text to continue, or messages to answer.

    Attributes:
        row: number of the row, from 0.
        asked: the text, or the messages with `role` and `content`.
        kept: fields of the row that its answer carries.
        problem: why nothing can be asked; empty if it can.
    """

    row: int
    asked: str | Sequence[Mapping[str, Any]]
    kept: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    problem: str = ""


class PromptRows:
    """The prompts at a path, one a row; `len()` reads the files once. Rows that cannot be read have a `problem`."""

    def __init__(self, path: str, *, split: str, field: str, keep: Sequence[str]):
        """Finds the files.

        Args:
            path: a dataset directory, a file, a folder of files, or a pattern.
            split: of a dataset.
            field: that holds the prompt; a row with a field `messages` is a conversation instead.
            keep: fields that answers carry, where a row has them; `id` always is.

        Raises:
            UserError: there is nothing to read, or a field is kept whose name an answer has for its own.
        """
        if taken := _OWN & set(keep):
            raise UserError(f"generate.keep: answers have fields of their own called {', '.join(sorted(taken))}")
        self._field, self._keep = field, ("id", *(name for name in keep if name != "id"))
        self._documents = DocumentSource(path, split=split) if (Path(path) / DATASET_FILE).is_file() else None
        self._files = [] if self._documents else find_files(path).files
        for file in self._files:
            if kind_of(file) == "archive":
                raise UserError(f"{file}: web archives hold no prompts; expected JSON Lines, Parquet, CSV or text")

    def __len__(self) -> int:
        return len(self._documents) if self._documents else sum(1 for file in self._files for _ in self._records(file))

    def __iter__(self) -> Iterator[Prompt]:
        if self._documents:
            records: Iterator[Record] = ({self._field: self._documents[i]} for i in range(len(self._documents)))
        else:
            records = itertools.chain.from_iterable(map(self._records, self._files))
        return (self._prompt(number, record) for number, record in enumerate(records))

    def _records(self, file: Path) -> Iterator[Record]:
        kind, fields = kind_of(file), tuple(dict.fromkeys((self._field, MESSAGES, *self._keep)))
        if kind == "parquet":
            from allam_jax.corpus.parquet_records import column_names, parquet_records  # pyarrow takes a second

            field = MESSAGES if MESSAGES in column_names(file) else self._field
            return parquet_records(file, text_field=field, optional=fields, limit=_LARGEST_ROW)
        if kind == "jsonl":
            return json_records(file, limit=_LARGEST_ROW)
        if kind == "txt":
            return text_records(file, text_field=self._field, unit="line", limit=_LARGEST_ROW)
        return csv_records(file, text_field=self._field, dialect=str(kind), limit=_LARGEST_ROW, optional=fields)

    def _prompt(self, number: int, record: Record) -> Prompt:
        if isinstance(record, str):
            return Prompt(number, "", problem=f"a row {record}")
        read = {name: record[name] for name in (self._field, MESSAGES, *self._keep) if name in record}
        for name, value in read.items():
            if isinstance(value, Unreadable):
                return Prompt(number, "", problem=f"a row with field {name!r} {value}")
        try:
            json_text(read).encode()
        except UnicodeEncodeError:  # half of a surrogate pair, which JSON can spell as an escape
            return Prompt(number, "", problem="a row with invalid Unicode")
        kept = {name: read[name] for name in self._keep if name in read}
        messages, text = record.get(MESSAGES), record.get(self._field)
        if messages is not None:
            if isinstance(messages, list) and messages and all(isinstance(one, dict) for one in messages):
                return Prompt(number, messages, kept)
            return Prompt(number, "", kept, problem=f"{MESSAGES!r} is no list of objects with 'role' and 'content'")
        if isinstance(text, str):
            return Prompt(number, text, kept)
        if text is not None:
            return Prompt(number, "", kept, problem=f"field {self._field!r} is not a string")
        names = ", ".join(map(str, list(record)[:5]))
        found = f"the row has {names}; set generate.field" if names else "the row is empty"
        return Prompt(number, "", kept, problem=f"no field {self._field!r} and no {MESSAGES!r}: {found}")
