"""The user's own files as documents.

Bad records (invalid UTF-8, broken JSON, no text) are counted by file and reason. A file with more than an accepted
share of bad records stops the run. So do damaged files, which end early or are not what their name says, when they are
more than an accepted share of all files.
"""

import dataclasses
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from allam_jax.corpus import web_archives
from allam_jax.corpus.document import Document
from allam_jax.corpus.found_files import common_folder, find_files, kind_of, part_of
from allam_jax.corpus.known_tags import UnreadableTagError, known_tags
from allam_jax.corpus.record_formats import (
    MANY_CONTROLS,
    NULS,
    Record,
    Unreadable,
    csv_records,
    json_records,
    text_records,
)
from allam_jax.corpus.settings import DocumentsSettings
from allam_jax.corpus.text_lines import CONTROLS, DamagedFile
from allam_jax.errors import UserError
from allam_jax.files import shown

_CHECK_EVERY = 10_000
_MANY_CONTROLS = 0.05  # share of a text's characters


@dataclasses.dataclass
class FileCounts:
    """What one file gave.

    Attributes:
        documents: number of good documents.
        bad: reason -> number of bad records.
        other: reason -> number of records without text that are no fault, such as images.
        unread: field and reason -> number of its values that cannot be read, in good documents.
        damage: why the file could not be read to its end; empty if it could.
    """

    documents: int = 0
    bad: Counter[str] = dataclasses.field(default_factory=Counter)
    other: Counter[str] = dataclasses.field(default_factory=Counter)
    unread: Counter[str] = dataclasses.field(default_factory=Counter)
    damage: str = ""

    def to_dict(self) -> dict[str, Any]:
        """The counts as JSON values."""
        return {key: dict(value) if isinstance(value, Counter) else value for key, value in vars(self).items()}

    def __str__(self) -> str:
        reasons = "".join(f", {count} {reason}" for reason, count in sorted(self.bad.items()))
        return f"{self.documents} good{reasons}" + (f", then damaged: {self.damage}" if self.damage else "")


class FileReader:
    """Iterates over the documents of the files of one source, in sorted order.

    `counts` maps each file read so far to its `FileCounts`. A document's id is the record's `id` if it has one.
    Otherwise it is the file's name (its path below the deepest common directory) and the record's number, from 1.
    """

    def __init__(
        self,
        settings: DocumentsSettings,
        *,
        source: str,
        files: Sequence[Path] | None = None,
        fields: Sequence[str] = (),
        tags: Sequence[str] = (),
        part: int = 0,
        parts: int = 1,
    ):
        """Takes the share of number `part` (from 0) of `parts` of `files`, by default those at `settings.path`.

        Parts are consecutive files of about equal bytes; some may be empty. `fields` are more fields or columns for the
        documents' metadata, where a record has them; `tags` are those whose values a record may bring in these fields.
        UserError as for `find_files`.
        """
        found = find_files(settings.path).files if files is None else files
        self._root = common_folder(found)
        self._max_damaged = int(settings.max_damaged_share * len(found))
        self.files = part_of(found, part=part, parts=parts)
        self._parts = parts
        self.counts: dict[Path, FileCounts] = {}
        self._source, self._settings, self._text_field = source, settings, settings.text_field
        self._tags = tags
        self._fields = tuple(dict.fromkeys(["id", *(field for field in fields if field != settings.text_field)]))

    def __iter__(self) -> Iterator[Document]:
        self.counts = {}
        for file in self.files:
            counts = self.counts[file] = FileCounts()
            name = shown(file.absolute().relative_to(self._root))
            for number, record in enumerate(self._readable_records(file), 1):
                document = self._document(record, counts, default_id=f"{name}:{number}")
                if isinstance(document, web_archives.NotText):
                    counts.other[document] += 1
                elif isinstance(document, str):
                    counts.bad[document] += 1
                else:
                    counts.documents += 1
                    yield document
                if number % _CHECK_EVERY == 0:
                    self._check_share(file)
            self._check_share(file)
        if self._parts == 1 and not any(counts.documents for counts in self.counts.values()):
            why = what_was_read(counts.to_dict() for counts in self.counts.values())
            raise UserError(
                f"{self._source}: no documents in {', '.join(map(str, self.files[:3]))}; the corpus is empty ({why})"
            )

    def _readable_records(self, file: Path) -> Iterator[Record]:
        """The records up to the damage, if there is any; raises if more files than accepted are damaged."""
        try:
            yield from self.records(file)
        except DamagedFile as error:
            self.counts[file].damage = str(error).removeprefix(f"{file}: ")
            damaged = sum(bool(counts.damage) for counts in self.counts.values())
            if damaged > self._max_damaged:
                raise

    def records(self, file: Path) -> Iterator[Record]:
        """The records of one of the files, or the reasons why they cannot be read; raises DamagedFile."""
        kind, field, limit = kind_of(file), self._text_field, self._settings.max_record_bytes
        if kind == "parquet":
            from allam_jax.corpus.parquet_records import parquet_records  # pyarrow takes a second to import

            return parquet_records(file, text_field=field, optional=self._fields, limit=limit)
        if kind == "archive":
            return web_archives.archive_records(file, text_field=field, limit=limit)
        if kind == "jsonl":
            return json_records(file, limit=limit)
        if kind == "txt":
            return text_records(file, text_field=field, unit=self._settings.text_unit, limit=limit)
        return csv_records(file, text_field=field, dialect=str(kind), limit=limit, optional=self._fields)

    def _document(self, record: Record, counts: FileCounts, *, default_id: str) -> Document | str:
        if isinstance(record, str):
            return record
        text = record.get(self._text_field)
        if text is None:
            return f"without field {self._text_field!r}"
        if not isinstance(text, str):
            return f"with field {self._text_field!r} not a string"
        if not text or text.isspace():
            return "empty"
        metadata = {}
        for field in [field for field in self._fields if field in record]:  # most records have few of them
            value = record[field]
            if isinstance(value, Unreadable):
                counts.unread[f"{field} {value}"] += 1
            elif value is not None and value == value:  # NaN, by which tables say that there is no value
                metadata[field] = value
        id_ = str(metadata.pop("id", "")) or default_id
        others = [v if isinstance(v, str) else json.dumps(v, ensure_ascii=False) for v in metadata.values()]
        try:
            encoded = text.encode()
            around = "".join([id_, *others])
            around.encode()
            brought = known_tags(metadata, self._tags)
        except UnicodeEncodeError:  # half of a surrogate pair, which JSON can spell as an escape
            return "with invalid Unicode"
        except UnreadableTagError as error:
            return str(error)
        if b"\0" in encoded or "\0" in around:
            return NULS
        if len(encoded) - len(encoded.translate(None, CONTROLS)) > _MANY_CONTROLS * len(text):
            return MANY_CONTROLS
        return Document(
            text=text,
            id=id_,
            source=self._source,
            language=self._settings.language,
            metadata=metadata,
            known_tags=brought,
        )

    def _check_share(self, file: Path) -> None:
        counts = self.counts[file]
        bad, accepted = counts.bad.total(), self._settings.max_bad_share
        if bad > accepted * (bad + counts.documents):
            named = f"without field {self._text_field!r}" in counts.bad
            remedy = "set text_field of this source to the field of the text" if named else "repair the file"
            raise UserError(
                f"{file}: too many bad records ({counts}; accepted share {accepted:g}); {remedy}, or raise its "
                "max_bad_share"
            )


def what_was_read(files: Iterable[Mapping[str, Any]]) -> str:
    """What the `FileCounts` (as JSON values) of some files hold instead of documents, by reason."""
    reasons: Counter[str] = Counter()
    for counts in files:
        reasons += Counter(counts["bad"]) + Counter(counts["other"])
        if counts["damage"]:
            reasons[f"files that are {counts['damage']}"] += 1
    return ", ".join(f"{count} {reason}" for reason, count in reasons.most_common()) or "the files are empty"
