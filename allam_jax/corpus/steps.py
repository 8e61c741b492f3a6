"""The pipeline's steps over documents, as datatrove steps: read, clean, judge, sign and keep; then load and write.

The steps of one task share a `Tally`. Each task writes its files atomically, under names that depend on its rank alone.
A task that was killed can therefore run again from the start.
"""

import contextlib
import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
from datatrove.data import Document as PipelineDocument
from datatrove.pipeline.base import PipelineStep
from loguru import logger

from allam_jax.corpus import keys
from allam_jax.corpus.addresses import parse_address
from allam_jax.corpus.corpus_plan import CorpusPlan
from allam_jax.corpus.dates import parse_date
from allam_jax.corpus.normalise import normalise
from allam_jax.corpus.pii import redact
from allam_jax.corpus.readers import FileReader
from allam_jax.corpus.rules import failed
from allam_jax.corpus.shards import PartWriter, disk_errors
from allam_jax.corpus.step_clock import StepClock
from allam_jax.corpus.tags import Resources, compute
from allam_jax.corpus.tally import Tally
from allam_jax.corpus.text_care import repair
from allam_jax.corpus.words import Words
from allam_jax.files import atomic_path, shown, write_json, write_text

# Errors reach the user as exceptions. Without this line, datatrove would print each of them again with its traceback.
logger.disable("datatrove")

CLEAN_TALLY, WRITE_TALLY, COUNTS = "clean.json", "write.json", "counts.json"
DOCUMENTS, REMOVED = "documents.array_record", "removed.npz"
REASONS = ("duplicate URL", "duplicate text", "near-duplicate")

_FORMS = 20  # of dates that cannot be read, counted each by itself

Documents = Iterator[PipelineDocument]


class Step(PipelineStep):
    """A step that receives documents one after another.

    Subclasses define `_process`, and `_begin` and `_end` where they need them. While a task runs, `part` is its part of
    the corpus, `settings` are those of the part's source, and `directory` is where the task writes.
    """

    type = "corpus"

    def __init__(self, plan: CorpusPlan, tally: Tally):
        super().__init__()
        self.plan, self.tally = plan, tally

    def run(self, data: Documents, rank: int = 0, world_size: int = 1) -> Documents:
        """Processes all documents; counts them and the seconds of processor time in the tally (`step_clock.py`)."""
        self._enter(rank)
        count, size, clock = 0, 0, StepClock()
        for document in data:
            clock.start()
            count += 1
            size += document.metadata["bytes"]
            result = self._process(document)
            clock.stop()
            if result is not None:
                yield result
        self._leave(count, size, clock.seconds)

    def _begin(self) -> None:
        """Runs before the first document."""

    def _process(self, document: PipelineDocument) -> PipelineDocument | None:
        """Returns the document for the next step, or None to drop it."""
        raise NotImplementedError

    def _end(self) -> None:
        """Runs after the last document."""

    def _enter(self, rank: int) -> None:
        self.part = self.plan.parts[rank]
        self.settings = self.plan.sources[self.part.source]
        self.directory = self.plan.directory(rank)
        self._begin()

    def _leave(self, documents: int, size: int, seconds: float) -> None:
        start = time.thread_time()
        self._end()
        seconds += time.thread_time() - start
        for unit, amount in (("documents", documents), ("bytes", size), ("seconds", seconds)):
            self.tally.add("steps", self.name, unit, amount=amount)


class Source(Step):
    """The first step of a stage, which yields documents of its own."""

    def run(self, data: Documents, rank: int = 0, world_size: int = 1) -> Documents:
        """Yields the documents of this rank's part until the tally says that there are enough."""
        self.tally.clear()
        self._enter(rank)
        count, total, clock = 0, 0, StepClock()
        documents = self._documents()
        while True:
            clock.start()
            found = next(documents, None)
            clock.stop()
            if found is None:
                break
            size, document = found
            count, total = count + 1, total + size
            if document is not None:
                yield document
            if self.tally.enough:
                break
        self._leave(count, total, clock.seconds)

    def _documents(self) -> Iterator[tuple[int, PipelineDocument | None]]:
        """Yields (bytes, document) for everything that is read; the document is None where it was removed."""
        raise NotImplementedError


class Read(Source):
    """Reads the part's documents from the user's files or from the catalog."""

    name = "read"

    def _begin(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        self.reader = self.plan.reader(self.part)

    def _documents(self) -> Iterator[tuple[int, PipelineDocument | None]]:
        for read in self.reader:
            size = len(read.text.encode())
            metadata = {
                "source": read.source,
                "language": read.language,
                "url": _string(read.metadata.get(self.settings.url_field)),
                "date": _string(read.metadata.get(self.settings.date_field)),
                "bytes": size,
                "known_tags": read.known_tags,
                # Apart from the others, because a record's field can have any name.
                "features": {name: _string(read.metadata.get(name)) for name in self.plan.settings.features},
            }
            metadata["domain"] = _string(read.metadata.get("domain")) or self.settings.domain or _host(metadata["url"])
            if metadata["date"] and parse_date(metadata["date"]) is None:
                forms, form = self.tally.values.get("unread", {}), f"date like {_form(metadata['date'])}"
                self.tally.add("unread", form if form in forms or len(forms) < _FORMS else "date in another form")
            self.tally.add("domains", "before", metadata["domain"])
            yield size, PipelineDocument(text=read.text, id=read.id, metadata=metadata)

    def _end(self) -> None:
        if isinstance(self.reader, FileReader):
            self.tally.values["files"] = {shown(file): counts.to_dict() for file, counts in self.reader.counts.items()}


class Clean(Step):
    """Repairs, normalises and redacts the text as the source's settings say; counts what each setting changed."""

    name = "clean"

    def _begin(self) -> None:
        self.total = 0

    def _process(self, document: PipelineDocument) -> PipelineDocument | None:
        """Returns the document with its cleaned text, or None when nothing visible is left of it."""
        self.tally.add("read", "documents")
        self.tally.add("read", "bytes", amount=document.metadata["bytes"])
        text = document.text if self.settings.untouched else self._cleaned(document)
        if not text.strip():
            self.tally.add("empty")
            self.tally.dropped.append((document.id, ["left empty"]))
            return None
        document.text = text
        document.metadata["bytes"] = len(text.encode())
        self.total += document.metadata["bytes"]
        self.tally.enough = 0 < self.settings.max_bytes <= self.total
        return document

    def _cleaned(self, document: PipelineDocument) -> str:
        text, repairs = repair(document.text, switches=self.settings.repair, language=document.metadata["language"])
        for name in repairs:
            self.tally.add("care", name)
        for name in self.settings.remove:
            # Each class of marks is removed by itself, so that it can be counted; the classes do not overlap.
            without = normalise(text, remove=[name], compose=False)
            if without != text:
                self.tally.add("care", f"remove {name}")
                text = without
        composed = normalise(text)
        if composed != text:
            self.tally.add("care", "nfc")
        if not self.settings.redact:
            return composed
        text, redacted = redact(composed, kinds=self.settings.redact)
        for kind, count in redacted.items():
            self.tally.add("redacted", kind, amount=count)
        return text


class Judge(Step):
    """Computes the tags of the documents and drops the documents that fail a rule."""

    name = "judge"

    def _begin(self) -> None:
        self.rules = self.plan.rules(self.part.source)
        self.tags = self.plan.tags(self.part.source)
        language = self.plan.language(self.part.source)
        settings = self.plan.settings
        self.resources = Resources(settings.block_lists.get(language, ""), settings.quality_models.get(language, ""))

    def _process(self, document: PipelineDocument) -> PipelineDocument | None:
        """Returns the document with its tags, or None if it fails a rule. The first such rule counts it as dropped."""
        metadata = document.metadata
        words = Words(document.text, language=metadata["language"])
        tags = compute(self.tags, words, known=metadata["known_tags"], resources=self.resources)
        for name, value in tags.items():
            self.tally.tag(name, value)
        against = failed(self.rules, tags, key=document.id)
        for name in against:
            self.tally.add("rules", name, "fails")
            self.tally.sample_dropped(name, tags[self.rules[name].tag], id_=document.id, text=document.text)
        if against:
            self.tally.dropped.append((document.id, against))
            self.tally.add("rules", against[0], "dropped")
            self.tally.add("rules", against[0], "bytes", amount=metadata["bytes"])
            return None
        for name, rule in self.rules.items():
            self.tally.sample_kept(name, rule, tags[rule.tag], id_=document.id, text=document.text)
        metadata["tags"], metadata["words"] = tags, words
        return document


class Sign(Step):
    """Computes the keys by which duplicates are found: one row for each document, in order."""

    name = "sign"

    def _begin(self) -> None:
        dedup = self.plan.settings.dedup
        salt = "" if dedup.scope == "corpus" else self.part.source
        self.columns = keys.Columns(minhash=self.plan.minhash if dedup.minhash else None, salt=salt)

    def _process(self, document: PipelineDocument) -> PipelineDocument:
        metadata = document.metadata
        words = metadata["words"].words if "words" in metadata else Words(document.text, language="").words
        self.columns.append(
            document.text, words=words, url=metadata["url"], date=metadata["date"], size=metadata["bytes"]
        )
        return document

    def _end(self) -> None:
        self.columns.write(self.directory, with_shingles=self.plan.settings.dedup.verify > 0)


class Keep(Step):
    """Stores the documents until the duplicates among them are known."""

    name = "keep"

    def run(self, data: Documents, rank: int = 0, world_size: int = 1) -> Documents:
        """Writes all documents of the part; yields none."""
        with atomic_path(self.plan.directory(rank) / DOCUMENTS) as temporary:
            self.writer = ArrayRecordWriter(str(temporary), "group_size:64")
            try:
                yield from super().run(data, rank, world_size)
            except BaseException:
                with contextlib.suppress(RuntimeError):
                    self.writer.close()
                raise
            with disk_errors(self.plan.work):
                self.writer.close()
        _write_tally(self.tally, self.directory / CLEAN_TALLY)

    def _process(self, document: PipelineDocument) -> None:
        fields = record(document, self.plan.features)
        with disk_errors(self.plan.work):
            self.writer.write(json.dumps([fields, document.metadata["domain"]], ensure_ascii=False).encode())


class Load(Source):
    """Reads the documents that `Keep` stored, except the duplicates."""

    name = "load"

    def _documents(self) -> Iterator[tuple[int, PipelineDocument | None]]:
        """Yields the documents that stay; counts the others by reason."""
        removed = np.load(self.directory / REMOVED)
        reasons = dict(zip(removed["rows"].tolist(), removed["reasons"].tolist(), strict=True))
        reader = ArrayRecordReader(str(self.directory / DOCUMENTS), "readahead_buffer_size:16777216")
        try:
            for row in range(reader.num_records()):
                fields, domain = json.loads(reader.read())
                size = len(fields["text"].encode())
                if row not in reasons:
                    metadata = {"fields": fields, "domain": domain, "bytes": size}
                    yield size, PipelineDocument(text=fields["text"], id=fields["id"], metadata=metadata)
                    continue
                reason = REASONS[reasons[row]]
                self.tally.add("duplicates", reason, "documents")
                self.tally.add("duplicates", reason, "bytes", amount=size)
                self.tally.dropped.append((fields["id"], [reason]))
                self.tally.sample_dropped(reason, None, id_=fields["id"], text=fields["text"])
                yield size, None
        finally:
            reader.close()


class Write(Step):
    """Writes the part's shards."""

    name = "write"

    def run(self, data: Documents, rank: int = 0, world_size: int = 1) -> Documents:
        """Writes all documents of the part; yields none."""
        source = self.plan.parts[rank].source
        with atomic_path(self.plan.directory(rank) / "shards") as temporary:
            temporary.mkdir(parents=True)
            with PartWriter(
                temporary,
                validation_share=self.plan.sources[source].validation_share,
                seed=self.plan.seed,
                shard_bytes=self.plan.settings.shard_bytes,
                dataset=self.plan.work.parent / source,
            ) as self.writer:
                yield from super().run(data, rank, world_size)
        write_json(self.directory / COUNTS, self.writer.counts)
        _write_tally(self.tally, self.directory / WRITE_TALLY)

    def _process(self, document: PipelineDocument) -> None:
        metadata = document.metadata
        self.tally.add("written", "documents")
        self.tally.add("written", "bytes", amount=metadata["bytes"])
        self.tally.add("domains", "after", metadata["domain"])
        self.writer.write(metadata["fields"] if "fields" in metadata else record(document, self.plan.features))


def record(document: PipelineDocument, fields: tuple[str, ...]) -> dict[str, str]:
    """The document as it is stored: field -> string. Tags are written as JSON."""
    metadata = document.metadata
    values: dict[str, Any] = {"text": document.text, "id": document.id, **metadata["features"]}
    values |= {name: metadata[name] for name in ("source", "language", "url", "date", "domain")}
    if "tags" in fields:
        values["tags"] = json.dumps(metadata.get("tags", {}))
    return {field: values[field] for field in fields}


def _write_tally(tally: Tally, path: Path) -> None:
    lines = (json.dumps({"id": id_, "reasons": reasons}, ensure_ascii=False) for id_, reasons in tally.dropped)
    write_text(path.with_suffix(".dropped"), "".join(f"{line}\n" for line in lines))
    write_json(path, tally.values)


def _form(date: str) -> str:
    """What a date looks like: its digits as 0, its words as `a`."""
    form = re.sub(r"[^\W\d_]+", "a", re.sub(r"\d", "0", date))
    return form if len(form) <= 30 else "a long text"


def _string(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _host(url: str) -> str:
    address = parse_address(url) if url else None
    return address.host if address else ""
