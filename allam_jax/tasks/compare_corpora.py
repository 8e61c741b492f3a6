"""Task `compare_corpora`: what several ways of cleaning made of one damaged corpus; `report.md` and `report.json`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from allam_jax.config import require
from allam_jax.corpus.found_files import DATASET_FILE
from allam_jax.corpus.record_formats import json_records
from allam_jax.corpus.shards import read_manifest
from allam_jax.corpus.word_lists import bare_block_list
from allam_jax.data.documents import DocumentSource
from allam_jax.errors import UserError
from allam_jax.files import shown, write_json
from allam_jax.report.markdown import plain, quote, section, table, write_report
from allam_jax.rewriting.restoration import blocked, diversity, scores, with_interval
from allam_jax.settings import Settings
from allam_jax.tasks.damage import DAMAGED, TRUTH

_PAIRS = 10
_SHOWN = 600  # characters of a document


def run(config: Settings, workdir: Path) -> dict[str, Any]:
    """Compares `compare.corpora`, and the damaged corpus itself if it is there; returns means with intervals."""
    options = config.compare
    directory = Path(require(options.damaged, key="compare.damaged", hint="give the directory of the task damage"))
    truth = _truth(directory / TRUTH)
    originals = {row["id"]: row["text"] for row in truth}
    planted = {row["id"]: row["planted"] for row in truth}
    given = require(options.corpora, key="compare.corpora", hint="name at least one dataset")
    corpora = {
        **_damaged(directory, given=given, known=originals),
        **{name: _texts(path, split=options.split, known=originals) for name, path in given.items()},
    }
    restored = {
        name: {measure: with_interval(values, seed=config.seed) for measure, values in found.items()}
        for name, found in ((name, scores(originals, planted, texts)) for name, texts in corpora.items())
    }
    everything: dict[str, Mapping[str, str]] = {"clean": originals, **corpora}
    toxicity = {
        language: {name: blocked(texts.values(), bare_block_list(path)) for name, texts in everything.items()}
        for language, path in options.block_lists.items()
    }
    diverse = {name: diversity(texts.values()) for name, texts in everything.items()}
    result = {"documents": len(truth), "restored": restored, "toxicity": toxicity, "diversity": diverse}
    write_json(workdir / "report.json", result)
    write_report(
        workdir / "report.md",
        title="Corpora compared",
        sections=[
            section("What was restored", "Means over documents, with 95 % bootstrap intervals.", _restored(restored)),
            *(section(f"Blocked words, {language}", _rows(found)) for language, found in toxicity.items()),
            section("Diversity", _rows(diverse)),
            *(section(f"Read: {name}", *_pairs(originals, texts)) for name, texts in corpora.items()),
        ],
    )
    return result


def _damaged(directory: Path, *, given: Mapping[str, str], known: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """The dataset that the task damage has written beside its truth, unless the config names it itself."""
    folders = [file.parent for file in sorted(directory.glob(f"*/{DATASET_FILE}"))]
    made = [one for one in folders if ((read_manifest(one) or {}).get("metadata") or {}).get("origin") == DAMAGED]
    named = {Path(path).resolve() for path in given.values()}
    unnamed = [folder for folder in made if folder.resolve() not in named]
    if not unnamed:
        return {}
    name = DAMAGED if DAMAGED not in given else f"{DAMAGED} ({shown(unnamed[0])})"
    return {name: _texts(str(unnamed[0]), split="train", known=known)}


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


def _texts(path: str, *, split: str, known: Mapping[str, str]) -> dict[str, str]:
    source = DocumentSource(path, split=split)
    texts = {fields["id"]: fields["text"] for fields in map(source.fields, range(len(source)))}
    if not texts.keys() <= known.keys():
        raise UserError(f"{path}: has documents that the damaged corpus does not have; compare what was made of it")
    return texts


def _restored(restored: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    measures = sorted({measure for found in restored.values() for measure in found})
    rows = [
        {"measure": measure}
        | {
            name: "{mean:.3f} ({low:.3f} to {high:.3f})".format(**found[measure])
            for name, found in restored.items()
            if measure in found
        }
        for measure in measures
    ]
    return table(rows)


def _rows(found: Mapping[str, Mapping[str, float]]) -> str:
    return table([{"corpus": name, **values} for name, values in found.items()])


def _pairs(originals: Mapping[str, str], texts: Mapping[str, str]) -> Sequence[str]:
    """The first documents that differ from the clean ones, each beside it."""
    different = [name for name, text in texts.items() if text != originals[name]][:_PAIRS]
    if not different:
        return ["Nothing differs from the clean documents."]
    shown = []
    for name in different:
        shown += [f"Document {plain(name)}: clean, then as it is.", quote(originals[name][:_SHOWN])]
        shown.append(quote(texts[name][:_SHOWN]))
    return shown
