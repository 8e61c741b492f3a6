"""The corpora of task `compare_corpora`: what they were made of, and what is known of it."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from allam_jax.config import require
from allam_jax.corpus.found_files import DATASET_FILE
from allam_jax.corpus.record_formats import json_records
from allam_jax.corpus.shards import read_manifest
from allam_jax.data.documents import DocumentSource
from allam_jax.errors import UserError
from allam_jax.files import shown, unit_hash
from allam_jax.rewriting.settings import CompareCorporaSettings
from allam_jax.tasks.damage import DAMAGED, TRUTH

CLEAN, BEFORE = "clean", "before"  # names of what the others are compared with

Texts = Mapping[str, str]  # id -> text


@dataclasses.dataclass(frozen=True)
class ComparedCorpora:
    """Corpora that were made of one.

    Attributes:
        truth: name of the corpus with which the others are compared: the clean one, or the one before.
        start: name of the corpus that they were made of: the damaged one if it is there, or the one before.
        texts: name -> texts, the truth first.
        languages: id -> language.
        planted: id -> kind and text of planted damage; empty where none was planted.
        order: the ids as a draw by the seed has them, of which every beginning is a sample.
    """

    truth: str
    start: str
    texts: Mapping[str, Texts]
    languages: Mapping[str, str]
    planted: Mapping[str, Sequence[tuple[str, str]]]
    order: Sequence[str]

    @property
    def made(self) -> dict[str, Texts]:
        """All but the truth."""
        return {name: texts for name, texts in self.texts.items() if name != self.truth}


def read_corpora(options: CompareCorporaSettings, *, seed: int) -> ComparedCorpora:
    """The corpora that a config names; UserError for what does not go together."""
    given = require(options.corpora, key="compare.corpora", hint="name at least one dataset")
    if bool(options.damaged) == bool(options.before):
        raise UserError(
            "config.compare: give the directory of the task damage as damaged, or the dataset that the corpora were "
            "made of as before, and not both"
        )
    if taken := {CLEAN, BEFORE} & given.keys():
        raise UserError(f"config.compare.corpora.{min(taken)}: the report has a corpus of that name; take another")
    languages, planted = dict[str, str](), dict[str, Sequence[tuple[str, str]]]()
    if options.damaged:
        rows = _truth(Path(options.damaged) / TRUTH)
        originals = {row["id"]: row["text"] for row in rows}
        planted = {row["id"]: row["planted"] for row in rows}
        truth, (start, paths) = CLEAN, _with_damaged(Path(options.damaged), given)
    else:
        originals, languages = _documents(options.before, split=options.split)
        truth, start, paths = BEFORE, BEFORE, dict(given)
    order = sorted(originals, key=lambda name: (unit_hash(f"{seed}:{name}"), name))[: options.documents or None]
    asked = set(order)
    texts = {truth: _those(originals, asked)}
    for name, path in paths.items():
        found, of_found = _documents(path, split=options.split if name in given else "train")
        if not found.keys() <= originals.keys():
            what = "damaged corpus" if options.damaged else "corpus before"
            raise UserError(f"{path}: has documents that the {what} does not have; compare what was made of it")
        texts[name] = _those(found, asked)
        languages = of_found | languages
    return ComparedCorpora(truth, start, texts, languages, _those(planted, asked), order)


def _those(values: Mapping[str, Any], asked: set[str]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name in asked}


def _with_damaged(directory: Path, given: Mapping[str, str]) -> tuple[str, dict[str, str]]:
    """The name of the damaged corpus, and the corpora with it: task damage writes it beside its truth."""
    folders = [file.parent for file in sorted(directory.glob(f"*/{DATASET_FILE}"))]
    made = [one for one in folders if ((read_manifest(one) or {}).get("metadata") or {}).get("origin") == DAMAGED]
    if not made:
        return CLEAN, dict(given)
    names = {Path(path).resolve(): name for name, path in given.items()}
    if known := next((names[folder.resolve()] for folder in made if folder.resolve() in names), ""):
        return known, dict(given)
    name = DAMAGED if DAMAGED not in given else f"{DAMAGED} ({shown(made[0])})"
    return name, {name: str(made[0]), **given}


def _truth(path: Path) -> list[dict[str, Any]]:
    rows = list(json_records(path, limit=1 << 30)) if path.is_file() else []
    if not rows:
        raise UserError(f"{path}: no such file, or empty; give the directory of a run of the task damage")
    if bad := next((row for row in rows if isinstance(row, str)), None):
        raise UserError(f"{path}: a row {bad}; run the task damage again")
    for number, row in enumerate(rows, start=1):
        kinds = {"id": str, "text": str, "planted": list}
        if not isinstance(row, dict) or not all(isinstance(row.get(key), kind) for key, kind in kinds.items()):
            raise UserError(f"{path}, line {number}: lacks id, text or planted; run the task damage again")
    return [row for row in rows if isinstance(row, dict)]


def _documents(path: str, *, split: str) -> tuple[dict[str, str], dict[str, str]]:
    """id -> text and id -> language of a dataset; UserError where two documents have one id."""
    source = DocumentSource(path, split=split)
    texts, languages = dict[str, str](), dict[str, str]()
    for fields in map(source.fields, range(len(source))):
        name = fields.get("id", "")
        if not name or name in texts:
            raise UserError(f"{path}: two documents have the id {name!r}, or none; write it with the corpus task")
        texts[name], languages[name] = fields["text"], fields.get("language", "")
    return texts, languages
