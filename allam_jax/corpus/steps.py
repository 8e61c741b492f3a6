"""The pipeline's steps over documents, as datatrove steps: read, clean, judge, sign, keep; later load and write.

The steps of one task share a `Tally`. Every file is written whole or not at all, under a name that follows from the
task's rank: a task that was killed is simply done again.
"""

import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
from datatrove.data import Document as PipelineDocument
from datatrove.pipeline.base import PipelineStep
from loguru import logger

from allam_jax.corpus import keys
from allam_jax.corpus.corpus_plan import Plan, known_tags
from allam_jax.corpus.normalise import normalise
from allam_jax.corpus.pii import redact
from allam_jax.corpus.readers import FileReader
from allam_jax.corpus.rules import failed
from allam_jax.corpus.shards import PartWriter, disk_errors
from allam_jax.corpus.tags import Resources, compute
from allam_jax.corpus.tally import Tally
from allam_jax.corpus.text_care import repair
from allam_jax.corpus.words import Words
from allam_jax.files import atomic_path, write_json, write_text

# What goes wrong reaches the user as an exception; datatrove would print it a second time, with its traceback.
logger.disable("datatrove")

CLEAN_TALLY, WRITE_TALLY, COUNTS = "clean.json", "write.json", "counts.json"
DOCUMENTS, KEYS, REMOVED = "documents.array_record", "keys.npz", "removed.npz"
SIGNED, BANDS, SHINGLES = "signed.npy", "bands.npy", "shingles.npz"
REASONS = ("duplicate URL", "duplicate text", "near-duplicate")

Documents = Iterator[PipelineDocument]


class Step(PipelineStep):
    """A step that looks at one document after another.

    Subclasses define `process` (the document to hand on, or None) and, as they need, `begin` and `end`.
    """

    type = "corpus"

    def __init__(self, plan: Plan, tally: Tally):
        super().__init__()
        self.plan, self.tally = plan, tally

    def run(self, data: Documents, rank: int = 0, world_size: int = 1) -> Documents:
        """Processes all documents, and counts them and the processor's seconds in the tally."""
        self.rank, self.part = rank, self.plan.parts[rank]
        self.facts = self.plan.sources[self.part.source]
        self.begin()
        count, size, seconds = 0, 0, 0.0
        for document in data:
            start = time.thread_time()
            count += 1
            size += document.metadata["bytes"]
            result = self.process(document)
            seconds += time.thread_time() - start
            if result is not None:
                yield result
        start = time.thread_time()
        self._took(count, size, seconds)
        self.end()
        self.tally.add("steps", self.name, "seconds", amount=time.thread_time() - start)

    def begin(self) -> None:
        """Before the first document."""

    def process(self, document: PipelineDocument) -> PipelineDocument | None:
        """The document to hand on, or None to drop it."""
        raise NotImplementedError

    def end(self) -> None:
        """After the last document."""

    @property
    def directory(self) -> Path:
        """Where this task writes."""
        return self.plan.directory(self.rank)

    def _took(self, documents: int, size: int, seconds: float) -> None:
        for unit, amount in (("documents", documents), ("bytes", size), ("seconds", seconds)):
            self.tally.add("steps", self.name, unit, amount=amount)


class Read(Step):
    """Reads the part's documents."""

    name = "read"

    def run(self, data: Documents, rank: int = 0, world_size: int = 1) -> Documents:
        """Yields the documents of this rank's part."""
        self.tally.clear()
        part = self.plan.parts[rank]
        facts = self.plan.sources[part.source]
        tags = self.plan.tags(part.source)
        self.plan.directory(rank).mkdir(parents=True, exist_ok=True)
        reader = self.plan.reader(part)
        count, total, seconds, start = 0, 0, 0.0, time.thread_time()
        for read in reader:
            size = len(read.text.encode())
            count, total = count + 1, total + size
            metadata = {
                "source": read.source,
                "language": read.language,
                "url": _string(read.metadata.get(facts["url_field"])),
                "date": _string(read.metadata.get(facts["date_field"])),
                "bytes": size,
                "known_tags": known_tags(read.metadata, tags),
            }
            metadata["domain"] = _string(read.metadata.get("domain")) or facts["domain"] or _host(metadata["url"])
            for name in self.plan.settings["features"]:
                metadata.setdefault(name, _string(read.metadata.get(name)))
            self.tally.add("domains", "before", metadata["domain"])
            seconds += time.thread_time() - start
            yield PipelineDocument(text=read.text, id=read.id, metadata=metadata)
            start = time.thread_time()
            if self.tally.enough:
                break
        if isinstance(reader, FileReader):
            self.tally.values["files"] = {
                str(file): {
                    "documents": counts.documents,
                    "bad": dict(counts.bad),
                    "other": dict(counts.other),
                    "damage": counts.damage,
                }
                for file, counts in reader.counts.items()
            }
        self._took(count, total, seconds)


class Clean(Step):
    """Repairs, normalises and redacts the text, as the source's switches say; counts what each of them changed."""

    name = "clean"

    def begin(self) -> None:
        """Starts counting towards the source's `max_bytes`."""
        self.total = 0

    def process(self, document: PipelineDocument) -> PipelineDocument | None:
        """The document with its text cared for; None when nothing visible is left."""
        self.tally.add("read", "documents")
        self.tally.add("read", "bytes", amount=document.metadata["bytes"])
        text = document.text if self.facts["untouched"] else self._cared_for(document)
        if not text.strip():
            self.tally.add("empty")
            self.tally.dropped.append((document.id, ["left empty"]))
            return None
        document.text = text
        document.metadata["bytes"] = len(text.encode())
        self.total += document.metadata["bytes"]
        self.tally.enough = 0 < self.facts["max_bytes"] <= self.total
        return document

    def _cared_for(self, document: PipelineDocument) -> str:
        text, repairs = repair(document.text, switches=self.facts["repair"], language=document.metadata["language"])
        for name in repairs:
            self.tally.add("care", name)
        for name in self.facts["remove"]:
            # One by one, to count them; the classes do not overlap.
            without = normalise(text, remove=[name], compose=False)
            if without != text:
                self.tally.add("care", f"remove {name}")
                text = without
        composed = normalise(text)
        if composed != text:
            self.tally.add("care", "nfc")
        text, redacted = redact(composed, kinds=self.facts["redact"]) if self.facts["redact"] else (composed, {})
        for kind, count in redacted.items():
            self.tally.add("redacted", kind, amount=count)
        return text


class Judge(Step):
    """Tags the documents and drops those that a rule is against."""

    name = "judge"

    def begin(self) -> None:
        """Reads the rules."""
        self.rules = self.plan.rules(self.part.source)
        self.tags = self.plan.tags(self.part.source)
        language = self.plan.language(self.part.source)
        files = (self.plan.settings[kind].get(language, "") for kind in ("block_lists", "quality_models"))
        self.resources = Resources(*files)

    def process(self, document: PipelineDocument) -> PipelineDocument | None:
        """The document with its tags; None if a rule drops it, counted under the first that does."""
        metadata = document.metadata
        words = Words(document.text, language=metadata["language"])
        tags = compute(self.tags, words, known=metadata["known_tags"], resources=self.resources)
        for name, value in tags.items():
            self.tally.tag(name, value)
        against = failed(self.rules, tags, key=document.id)
        for rule in against:
            self.tally.add("rules", rule.name, "fails")
            self.tally.sample_dropped(rule.name, tags[rule.tag], id_=document.id, text=document.text)
        if against:
            self.tally.dropped.append((document.id, [rule.name for rule in against]))
            self.tally.add("rules", against[0].name, "dropped")
            self.tally.add("rules", against[0].name, "bytes", amount=metadata["bytes"])
            return None
        for rule in self.rules:
            self.tally.sample_kept(rule, tags[rule.tag], id_=document.id, text=document.text)
        metadata["tags"], metadata["words"] = tags, words
        return document


class Sign(Step):
    """Computes what duplicates are found by, a row for each document in order."""

    name = "sign"

    def begin(self) -> None:
        """Starts empty columns."""
        dedup = self.plan.settings["dedup"]
        salt = "" if dedup["scope"] == "corpus" else self.part.source
        self.columns = keys.Columns(minhash=self.plan.minhash if dedup["minhash"] else None, salt=salt)

    def process(self, document: PipelineDocument) -> PipelineDocument:
        """The document, unchanged."""
        metadata = document.metadata
        words = metadata["words"].words if "words" in metadata else Words(document.text, language="").words
        self.columns.append(
            document.text, words=words, url=metadata["url"], date=metadata["date"], size=metadata["bytes"]
        )
        return document

    def end(self) -> None:
        """Writes the columns."""
        keep_shingles = self.plan.settings["dedup"]["verify"] > 0
        self.columns.write(
            self.directory,
            names=(KEYS, SIGNED, BANDS, SHINGLES if keep_shingles else ""),
            bands=self.plan.minhash.bands,
        )


class Keep(Step):
    """Stores the documents until the duplicates among them are known."""

    name = "keep"

    def run(self, data: Documents, rank: int = 0, world_size: int = 1) -> Documents:
        """Writes all documents of the part; hands on none."""
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

    def process(self, document: PipelineDocument) -> None:
        """Writes it."""
        fields = record(document, self.plan.features)
        with disk_errors(self.plan.work):
            self.writer.write(json.dumps([fields, document.metadata["domain"]], ensure_ascii=False).encode())


class Load(Step):
    """Reads what `Keep` stored, without what was found to be a duplicate."""

    name = "load"

    def run(self, data: Documents, rank: int = 0, world_size: int = 1) -> Documents:
        """Yields the documents of this rank that stay."""
        self.tally.clear()
        directory = self.plan.directory(rank)
        removed = np.load(directory / REMOVED)
        reasons = dict(zip(removed["rows"].tolist(), removed["reasons"].tolist(), strict=True))
        reader = ArrayRecordReader(str(directory / DOCUMENTS), "readahead_buffer_size:16777216")
        count, total, seconds, start = 0, 0, 0.0, time.thread_time()
        try:
            for row in range(reader.num_records()):
                fields, domain = json.loads(reader.read())
                size = len(fields["text"].encode())
                count, total = count + 1, total + size
                if row in reasons:
                    reason = REASONS[reasons[row]]
                    self.tally.add("duplicates", reason, "documents")
                    self.tally.add("duplicates", reason, "bytes", amount=size)
                    self.tally.dropped.append((fields["id"], [reason]))
                    self.tally.sample_dropped(reason, None, id_=fields["id"], text=fields["text"])
                    continue
                seconds += time.thread_time() - start
                metadata = {"fields": fields, "domain": domain, "bytes": size}
                yield PipelineDocument(text=fields["text"], id=fields["id"], metadata=metadata)
                start = time.thread_time()
        finally:
            reader.close()
        self._took(count, total, seconds)


class Write(Step):
    """Writes the part's shards."""

    name = "write"

    def run(self, data: Documents, rank: int = 0, world_size: int = 1) -> Documents:
        """Writes all documents of the part; hands on none."""
        facts = self.plan.sources[self.plan.parts[rank].source]
        with atomic_path(self.plan.directory(rank) / "shards") as temporary:
            temporary.mkdir(parents=True)
            with PartWriter(
                temporary,
                validation_share=facts["validation_share"],
                seed=self.plan.seed,
                shard_bytes=self.plan.settings["shard_bytes"],
                dataset=self.plan.work.parent / self.plan.parts[rank].source,
            ) as self.writer:
                yield from super().run(data, rank, world_size)
        write_json(self.directory / COUNTS, self.writer.counts)
        _write_tally(self.tally, self.directory / WRITE_TALLY)

    def process(self, document: PipelineDocument) -> None:
        """Writes it."""
        metadata = document.metadata
        self.tally.add("written", "documents")
        self.tally.add("written", "bytes", amount=metadata["bytes"])
        self.tally.add("domains", "after", metadata["domain"])
        self.writer.write(metadata["fields"] if "fields" in metadata else record(document, self.plan.features))


def record(document: PipelineDocument, fields: tuple[str, ...]) -> dict[str, str]:
    """The record that is stored of a document: strings all, tags as JSON."""
    metadata = document.metadata
    values: dict[str, Any] = {"text": document.text, "id": document.id, **metadata}
    if "tags" in fields:
        values["tags"] = json.dumps(metadata.get("tags", {}))
    return {field: values[field] for field in fields}


def _write_tally(tally: Tally, path: Path) -> None:
    lines = (json.dumps({"id": id_, "reasons": reasons}, ensure_ascii=False) for id_, reasons in tally.dropped)
    write_text(path.with_suffix(".dropped"), "".join(f"{line}\n" for line in lines))
    write_json(path, tally.values)


def _string(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _host(url: str) -> str:
    try:
        return (urlsplit(url if "//" in url else f"//{url}").hostname or "").removeprefix("www.") if url else ""
    except ValueError:  # not an address
        return ""
