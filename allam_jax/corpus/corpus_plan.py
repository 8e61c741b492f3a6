"""What a run of the corpus pipeline will do, derived from the config before any text is read.

A *part* is what one task reads: consecutive files of one source, or a whole source of the catalog. Shards follow the
parts, so the number of parts (`corpus.parts`) changes the files of a dataset; the number of workers does not.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from allam_jax.corpus import catalog
from allam_jax.corpus.fasttext_classifier import MODEL_FILE
from allam_jax.corpus.found_files import common_folder, find_files
from allam_jax.corpus.known_tags import PROBABILITIES, QUALITY_SIGNALS
from allam_jax.corpus.language_id import LANGUAGES, check_language
from allam_jax.corpus.minhash import MinHash
from allam_jax.corpus.readers import FileReader
from allam_jax.corpus.rules import PARETO, Rules
from allam_jax.corpus.settings import CorpusSettings, DocumentsSettings
from allam_jax.corpus.shards import FIELDS, check_name
from allam_jax.corpus.tags import LANGUAGE_TAGS, check_names
from allam_jax.errors import UserError
from allam_jax.files import sha256_of_file, sha256_of_json, shown
from allam_jax.inputs import InputFiles, look
from allam_jax.settings import as_dict


@dataclasses.dataclass(frozen=True)
class Part:
    """The share of a source that one task reads: number `index` (from 0) of `count`."""

    source: str
    index: int
    count: int


@dataclasses.dataclass(frozen=True)
class CorpusPlan:
    """Everything that the steps need to know. It holds plain values only, so it can be sent to any machine.

    Attributes:
        settings: `config.corpus`.
        parts: in the order of the corpus; a task's rank is its index here.
        work: directory for the files that one step writes and another reads.
        seed: selects the documents that are held out.
        found: source -> the files that are read, as they were when the plan was made.
        skipped: source -> reason -> the files at its path that are not read.
        files: key of the config -> SHA-256 of the block list or the quality classifier that its value names.
    """

    settings: CorpusSettings
    parts: tuple[Part, ...]
    work: Path
    seed: int = 0
    found: Mapping[str, InputFiles] = dataclasses.field(default_factory=dict)
    skipped: Mapping[str, Mapping[str, Sequence[str]]] = dataclasses.field(default_factory=dict)
    files: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def sources(self) -> Mapping[str, DocumentsSettings]:
        """The settings of each source."""
        return self.settings.sources

    def directory(self, rank: int) -> Path:
        """The directory that the task of this rank writes to."""
        return self.work / "parts" / f"{rank:05d}"

    def language(self, source: str) -> str:
        """ISO 639-1 code of the source's language, or `code`."""
        settings = self.sources[source]
        return catalog.SOURCES[settings.catalog].language if settings.catalog else settings.language

    def rules(self, source: str) -> Rules:
        """The rules that the source's documents must pass, by name; UserError for an unknown set of rules or tag."""
        name = self.sources[source].rules
        if not name:
            return {}
        if name not in self.settings.rules:
            known = ", ".join(self.settings.rules) or "none"
            raise UserError(
                f"config.corpus.sources.{source}.rules = {name!r}: no such set in config.corpus.rules (known: {known})"
            )
        rules = dict(sorted(self.settings.rules[name].items()))
        for key, rule in rules.items():
            check_names([rule.tag], key=f"corpus.rules.{name}.{key}.tag")
            if rule.drop == PARETO and rule.tag not in PROBABILITIES:
                raise UserError(
                    f"config.corpus.rules.{name}.{key}: {PARETO} samples by a probability, which {rule.tag} is not; "
                    f"use one of {', '.join(PROBABILITIES)}"
                )
        return rules

    def tags(self, source: str) -> tuple[str, ...]:
        """The tags computed for the source's documents: those of its rules, then those of `config.corpus.tags`."""
        return tuple(dict.fromkeys([rule.tag for rule in self.rules(source).values()] + list(self.settings.tags)))

    @property
    def features(self) -> tuple[str, ...]:
        """Names of the fields of the records that are written, in order."""
        return (*FIELDS, *self.settings.features)

    @property
    def deduplicates(self) -> bool:
        """Whether the pipeline looks for any kind of duplicate."""
        dedup = self.settings.dedup
        return dedup.url or dedup.text or dedup.minhash

    @property
    def shares_duplicates(self) -> bool:
        """Whether the documents that one source keeps depend on the other sources."""
        return self.deduplicates and self.settings.dedup.scope == "corpus"

    @functools.cached_property
    def minhash(self) -> MinHash:
        """Makes the signatures."""
        return MinHash(self.settings.dedup)

    def record_fields(self, source: str) -> tuple[str, ...]:
        """The fields to read from a record besides its text and id."""
        settings, features = self.sources[source], self.settings.features
        fields = [settings.url_field, settings.date_field] if self.deduplicates or features else []
        tags = self.tags(source)
        return tuple(filter(None, (*fields, *features, *tags, *([QUALITY_SIGNALS] if tags else []))))

    def facts(self, source: str) -> dict[str, Any]:
        """Everything that determines the dataset of a source: equal facts give equal shards."""
        sources, pipeline = _values(self.settings)
        facts = {"source": sources.pop(source), "pipeline": pipeline, "seed": self.seed}
        if self.files:
            facts["files"] = dict(self.files)
        if self.shares_duplicates:
            facts["others"] = sources
        return facts

    def inputs(self, source: str) -> dict[str, InputFiles]:
        """The files on which the dataset of this source depends, by source.

        These are its own files. If `shares_duplicates`, they are those of all sources.
        """
        return {name: found for name, found in self.found.items() if name == source or self.shares_duplicates}

    def reader(self, part: Part) -> Any:
        """An iterable of the part's documents: a `FileReader`, or documents of the catalog."""
        settings = self.sources[part.source]
        if settings.catalog:
            return catalog.documents(settings.catalog)
        fields = self.record_fields(part.source)
        files = list(self.found[part.source].files.values())
        return FileReader(
            settings,
            source=part.source,
            files=files,
            fields=fields,
            tags=self.tags(part.source),
            part=part.index,
            parts=part.count,
        )


def make_corpus_plan(settings: CorpusSettings, *, workdir: Path, seed: int = 0) -> CorpusPlan:
    """Checks `config.corpus` and divides the sources into parts.

    `CorpusPlan.work` is a hidden directory in `workdir`, whose name is a hash of the work. Another seed holds out other
    documents. UserError if values do not fit together, or a source has no files.
    """
    check_names(settings.tags, key="corpus.tags")
    parts: list[Part] = []
    inputs: dict[str, InputFiles] = {}
    skipped: dict[str, Mapping[str, Sequence[str]]] = {}
    for name, source in settings.sources.items():
        _check_source(name, source)
        count = 1
        if source.path:
            found = find_files(source.path)
            inputs[name] = look(common_folder(found.files), found.files)
            skipped[name] = {reason: [shown(file) for file in files] for reason, files in found.skipped.items()}
            # Only a task that reads the whole source can keep a limit on it.
            count = 1 if source.max_bytes else min(settings.parts, len(found.files))
        parts += [Part(name, index, count) for index in range(count)]
    used = _sha256_of_files(settings)
    read = {name: [shown(found.root), found.states] for name, found in inputs.items()}
    # The hash covers the files that are read, so that a run never continues the work of another run on other files.
    work = workdir / f".work-{sha256_of_json([*_values(settings), seed, read, used])[:12]}"
    plan = CorpusPlan(settings, tuple(parts), work, seed, inputs, skipped, used)
    for name in settings.sources:
        for key, rule in plan.rules(name).items():
            if rule.tag in LANGUAGE_TAGS and plan.language(name) not in LANGUAGES:
                raise UserError(
                    f"config.corpus.sources.{name}: rule {key!r} needs {rule.tag}, but lid.176 knows no language "
                    f"{plan.language(name)!r}; give the source a set of rules without it"
                )
    return plan


def _values(settings: CorpusSettings) -> tuple[dict[str, Any], dict[str, Any]]:
    """The values of the sources, and the other values that decide what is written."""
    values = as_dict(settings)
    del values["executor"]
    return values.pop("sources"), values


def _sha256_of_files(settings: CorpusSettings) -> dict[str, str]:
    files = {f"block_lists.{language}": Path(path) for language, path in settings.block_lists.items()}
    for language, directory in settings.quality_models.items():
        files[f"quality_models.{language}"] = Path(directory) / MODEL_FILE
    for key, path in files.items():
        if not path.is_file():
            raise UserError(f"config.corpus.{key}: there is no file {path}; name an existing one, or remove the entry")
    return {key: sha256_of_file(path) for key, path in files.items()}


def _check_source(name: str, source: DocumentsSettings) -> None:
    key = f"config.corpus.sources.{name}"
    check_name(name)
    if bool(source.catalog) == bool(source.path):
        raise UserError(f"{key}: give either catalog (a source of the catalog) or path (your own files)")
    if source.path and not source.language:
        raise UserError(f"{key}.language is empty: give the ISO 639-1 code of the texts, such as ar")
    if source.language:
        check_language(source.language, key=f"{key}.language")
    if source.catalog:
        catalog.check_source(source.catalog)
