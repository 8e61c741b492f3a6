"""Task `damage_chats`: conversations or pairs, or some of them, of which a known share is spoilt; for experiments.

The workdir holds NAME.jsonl of each source, truth.jsonl (source, row and kind of every spoilt row) and
damage_chats.json (the counts).
"""

import collections
import itertools
from pathlib import Path
from typing import Any

from allam_jax.alignment.chat_files import chat_files, chat_records
from allam_jax.alignment.damaged_chats import Chat, damaged_rows
from allam_jax.config import require
from allam_jax.corpus.record_formats import Unreadable
from allam_jax.errors import UserError
from allam_jax.files import child, write_json, write_json_lines
from allam_jax.settings import Settings

TRUTH = "truth"  # name of the file that says what was spoilt


def run(config: Settings, workdir: Path) -> dict[str, Any]:
    """Writes the files; returns for each source the number of its rows, and of those with each kind of damage."""
    options = config.damage_chats
    require(options.sources, key="damage_chats.sources", hint="name at least one source")
    if TRUTH in options.sources:
        raise UserError(f"config.damage_chats.sources.{TRUTH}: the task writes a file of that name; take another")
    sources = {
        name: _records(require(source.path, key=f"damage_chats.sources.{name}.path", hint="give a file"))
        for name, source in options.sources.items()
    }
    found = damaged_rows(sources, settings=options, seed=config.seed)
    truth = []
    for name, rows in found.items():
        path = child(workdir, f"{name}.jsonl", what="config.damage_chats.sources")
        write_json_lines(path, (row.record for row in rows))
        truth += [{"source": name, "row": number, "kind": row.kind} for number, row in enumerate(rows) if row.kind]
    write_json_lines(workdir / f"{TRUTH}.jsonl", truth)
    result = {
        name: {"rows": len(rows), "damaged": dict(collections.Counter(row.kind for row in rows if row.kind))}
        for name, rows in found.items()
    }
    write_json(workdir / "damage_chats.json", result)
    return result


def _records(path: str) -> list[Chat]:
    found: list[Chat] = []
    for record in itertools.chain.from_iterable(chat_records(file, every_column=True) for file in chat_files(path)):
        if isinstance(record, str):
            reason = record
        else:  # a reason in place of a value would be written as if it were one
            reason = next((str(value) for value in record.values() if isinstance(value, Unreadable)), "")
        if reason or isinstance(record, str):
            raise UserError(
                f"{path}: row {len(found)} cannot be read ({reason}); leave out such rows with task sft_quality"
            )
        found.append(record)
    return found
