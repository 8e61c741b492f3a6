"""What a run of the pipeline is to do, worked out from the config before anything is read.

A *part* is what one task reads: consecutive files of one source, or a whole source of the catalog. Shards follow parts,
so how many parts a source has (`corpus.parts`) shows in the dataset; how many workers share them does not.
"""

import dataclasses
import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from allam_jax.corpus import catalog
from allam_jax.corpus.fasttext_classifier import MODEL_FILE
from allam_jax.corpus.minhash import MinHash
from allam_jax.corpus.readers import FileReader, find_files
from allam_jax.corpus.rules import Rule, read_rules
from allam_jax.corpus.shards import FIELDS, check_dataset
from allam_jax.corpus.tags import check_names
from allam_jax.errors import UserError
from allam_jax.files import sha256_of_file, sha256_of_json

SCOPES = ("corpus", "source")
_QUALITY_SIGNALS = "quality_signals"  # where RedPajama-v2 keeps its tags in a record


@dataclasses.dataclass(frozen=True)
class Part:
    """The share of a source that one task reads: number `index` of `count`."""

    source: str
    index: int
    count: int


@dataclasses.dataclass(frozen=True)
class Plan:
    """Everything that steps need to know; made of plain values, so that it travels to any machine.

    Attributes:
      sources: Name -> values of `config.corpus.sources.NAME`.
      settings: Values of `config.corpus` that decide what is written: rules, tags, dedup, features, block lists.
      parts: In the order of the corpus; a task's rank is its index here.
      work: Directory for what lies between the steps.
      seed: Chooses the documents that are held out.
      files: SHA-256 of the block lists and the quality classifiers that `settings` names.
    """

    sources: Mapping[str, Mapping[str, Any]]
    settings: Mapping[str, Any]
    parts: tuple[Part, ...]
    work: Path
    seed: int = 0
    files: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def directory(self, rank: int) -> Path:
        """Where the task of this rank writes."""
        return self.work / "parts" / f"{rank:05d}"

    def language(self, source: str) -> str:
        """Language of the source's documents."""
        facts = self.sources[source]
        return catalog.SOURCES[facts["catalog"]].language if facts["catalog"] else facts["language"]

    def rules(self, source: str) -> tuple[Rule, ...]:
        """The rules that the source's documents have to pass."""
        name = self.sources[source]["rules"]
        if not name:
            return ()
        if name not in self.settings["rules"]:
            known = ", ".join(self.settings["rules"]) or "none"
            raise UserError(
                f"config.corpus.sources.{source}.rules = {name!r}: no such set in config.corpus.rules ({known})"
            )
        return read_rules(self.settings["rules"][name], key=f"corpus.rules.{name}")

    def tags(self, source: str) -> tuple[str, ...]:
        """The tags that the source's documents get: those of its rules, and those asked for."""
        return tuple(dict.fromkeys([rule.tag for rule in self.rules(source)] + list(self.settings["tags"])))

    @property
    def features(self) -> tuple[str, ...]:
        """Fields of the records that are written."""
        return (*FIELDS, *self.settings["features"])

    @property
    def deduplicates(self) -> bool:
        """Whether any kind of duplicate is looked for."""
        dedup = self.settings["dedup"]
        return bool(dedup["url"] or dedup["text"] or dedup["minhash"])

    @property
    def shares_duplicates(self) -> bool:
        """Whether what one source keeps depends on the others."""
        return self.deduplicates and self.settings["dedup"]["scope"] == "corpus"

    @functools.cached_property
    def minhash(self) -> MinHash:
        """Parameters of the signatures."""
        dedup = self.settings["dedup"]
        return MinHash(**{key: dedup[key] for key in ("shingle", "hashes", "bands", "rows")})

    def record_fields(self, source: str) -> tuple[str, ...]:
        """What to read from a record beside text and id."""
        facts = self.sources[source]
        fields = [facts["url_field"], facts["date_field"]] if self.deduplicates or self.settings["features"] else []
        tags = self.tags(source)
        return tuple(filter(None, (*fields, *self.settings["features"], *tags, *([_QUALITY_SIGNALS] if tags else []))))

    def facts(self, source: str) -> dict[str, Any]:
        """What the dataset of a source follows from: equal facts, equal shards."""
        facts = {"source": dict(self.sources[source]), "pipeline": dict(self.settings), "seed": self.seed}
        if self.files:
            facts["files"] = dict(self.files)
        if self.shares_duplicates:
            facts["others"] = {name: dict(values) for name, values in self.sources.items() if name != source}
        return facts

    def reader(self, part: Part) -> Any:
        """Iterates over the part's documents; a `FileReader`, or documents of the catalog."""
        facts = self.sources[part.source]
        if facts["catalog"]:
            return catalog.documents(facts["catalog"])
        return FileReader(
            facts["path"],
            source=part.source,
            language=facts["language"],
            text_field=facts["text_field"],
            text_unit=facts["text_unit"],
            max_bad_share=facts["max_bad_share"],
            max_damaged_share=facts["max_damaged_share"],
            fields=self.record_fields(part.source),
            part=part.index,
            parts=part.count,
        )


def make_plan(
    sources: Mapping[str, Mapping[str, Any]], settings: Mapping[str, Any], *, workdir: Path, seed: int = 0
) -> Plan:
    """Checks the values and lays out the parts.

    Args:
      sources: Name -> values as `configs/base.py` `documents` has them.
      settings: The other values of `config.corpus`, without `executor`.
      workdir: Of the task; `Plan.work` is a hidden directory in it, named after what is to be done with which files.
      seed: Chooses another division into splits.

    Raises:
      UserError: A value that cannot be used, a source without files.
    """
    if settings["dedup"]["scope"] not in SCOPES:
        raise UserError(
            f"config.corpus.dedup.scope = {settings['dedup']['scope']!r}: expected one of {', '.join(SCOPES)}"
        )
    check_names(settings["tags"], key="corpus.tags")
    parts: list[Part] = []
    read: list[tuple[str, int, int]] = []
    for name, facts in sources.items():
        _check_source(name, facts)
        count = 1
        if facts["path"]:
            files = find_files(facts["path"])
            read += [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
            # A limit on the whole source can only be kept by one who reads all of it.
            count = 1 if facts["max_bytes"] else max(1, min(settings["parts"], len(files)))
        parts += [Part(name, index, count) for index in range(count)]
    used = _sha256_of_files(settings)
    # Other files are other work: what a killed run has done with those that were there is not taken over.
    work = workdir / f".work-{sha256_of_json([sources, settings, seed, read, used])[:12]}"
    plan = Plan(sources, settings, tuple(parts), work, seed, used)
    for name in sources:
        plan.tags(name)
    if settings["dedup"]["minhash"]:
        _ = plan.minhash
    return plan


def known_tags(record: Mapping[str, Any], tags: Sequence[str]) -> dict[str, float]:
    """The tags that a record brings along: as fields, or in RedPajama-v2's `quality_signals` (a mapping, or its JSON,
    of name -> [[start, end, value]])."""
    signals = record.get(_QUALITY_SIGNALS) or {}
    if isinstance(signals, str):
        try:
            signals = json.loads(signals)
        except ValueError:
            signals = {}
    found = {}
    for tag in tags:
        value = record.get(tag, signals.get(tag) if isinstance(signals, Mapping) else None)
        while isinstance(value, list | tuple) and value:
            value = value[-1]
        if isinstance(value, int | float) and not isinstance(value, bool):
            found[tag] = float(value)
    return found


def _sha256_of_files(settings: Mapping[str, Any]) -> dict[str, str]:
    """Key of the config -> SHA-256 of the file that its value names."""
    files = {f"block_lists.{language}": Path(path) for language, path in settings["block_lists"].items()}
    for language, directory in settings["quality_models"].items():
        files[f"quality_models.{language}"] = Path(directory) / MODEL_FILE
    for key, path in files.items():
        if not path.is_file():
            raise UserError(f"config.corpus.{key}: there is no {path}; name a file, or remove the entry")
    return {key: sha256_of_file(path) for key, path in files.items()}


def _check_source(name: str, facts: Mapping[str, Any]) -> None:
    key = f"config.corpus.sources.{name}"
    check_dataset(name, validation_share=facts["validation_share"])
    if bool(facts["catalog"]) == bool(facts["path"]):
        raise UserError(f"{key}: give either catalog (a source of the catalog) or path (your own files)")
    if facts["path"] and not facts["language"]:
        raise UserError(f"{key}.language is empty: give the ISO 639-1 code of the texts, such as ar")
    if facts["catalog"]:
        catalog.check_source(facts["catalog"])
