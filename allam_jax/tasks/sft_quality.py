"""Task `sft_quality`: checks conversations or pairs before a model is tuned on them, and leaves out what is faulty.

The workdir holds clean/NAME.jsonl of each source (its rows as they are), dropped.jsonl (every row that is left out,
with its faults), report.json, report.md and measures.png. With a model at `init.weights` the report also says how much
the rows differ in meaning (meanings.png), and alike.jsonl has those that say nearly the same. Only then JAX is loaded.
"""

import collections
import contextlib
import itertools
import random
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

from absl import logging

from allam_jax.alignment.chat_faults import shown
from allam_jax.alignment.chat_files import chat_files, chat_records
from allam_jax.alignment.chat_quality import Row, evaluation_index, examined_rows, summary
from allam_jax.alignment.settings import CHAT_FAULTS, ChatQualitySettings
from allam_jax.config import require
from allam_jax.corpus.record_formats import Record
from allam_jax.files import atomic_path, child, json_text, write_json
from allam_jax.report.markdown import figure, section, table, write_report
from allam_jax.report.style import COLOURS, STYLE, save_figure, subplots
from allam_jax.settings import Settings


def run(config: Settings, workdir: Path) -> dict[str, Any]:
    """Checks `chat_quality.sources`; returns by source what was read, found, kept and left out."""
    options = config.chat_quality
    require(options.sources, key="chat_quality.sources", hint="name at least one source")
    for name, source in options.sources.items():
        require(source.path, key=f"chat_quality.sources.{name}.path", hint="give a file, a folder or a dataset")
    index = evaluation_index(_evaluations(options.evaluations), n=options.ngram) if options.evaluations else None
    sources = {name: _records(source.path) for name, source in options.sources.items()}
    rows = examined_rows(sources, settings=options, index=index)

    _write_rows(rows, options, workdir)
    found = summary(rows, options)
    _draw(rows, workdir / "measures.png")
    meanings = []
    if config.init.weights:
        from allam_jax.tasks.chat_meanings import meanings_of_rows  # here, because it imports JAX

        of_sources, block = meanings_of_rows(rows, config, workdir)
        meanings.append(block)
        for name, facts in of_sources.items():
            found[name]["meaning"] = facts
    write_json(workdir / "report.json", found)
    _write_report(rows, found, options, workdir / "report.md", seed=config.seed, more=meanings)
    return found


def _records(path: str) -> Iterator[Record]:
    return itertools.chain.from_iterable(chat_records(file, every_column=True) for file in chat_files(path))


def _evaluations(path: str) -> Iterator[dict[str, Any]]:
    """The rows of evaluations; those that cannot be read are counted."""
    bad = collections.Counter[str]()
    for record in _records(path):
        if isinstance(record, str):
            bad[record] += 1
        else:
            yield record
    for reason, count in bad.most_common():
        logging.warning("chat_quality.evaluations: %d rows cannot be read: %s", count, reason)


def _write_rows(rows: Sequence[Row], options: ChatQualitySettings, workdir: Path) -> None:
    """Reads the sources again and writes each row where it belongs."""
    with contextlib.ExitStack() as stack:
        clean = stack.enter_context(atomic_path(workdir / "clean"))
        clean.mkdir()
        dropped = stack.enter_context(atomic_path(workdir / "dropped.jsonl"))
        log = stack.enter_context(_open_lines(dropped))
        judged = iter(rows)
        for name, source in options.sources.items():
            path = child(clean, name, what="config.chat_quality.sources").with_suffix(".jsonl")
            with _open_lines(path) as kept:
                for record in _records(source.path):
                    row = next(judged)
                    if faults := row.dropped_for(options):
                        entry = {"source": name, "row": row.number, "faults": shown(row.faults), "dropped_for": faults}
                        log.write(json_text(entry | {"record": record}) + "\n")
                    else:
                        kept.write(json_text(record) + "\n")


def _open_lines(path: Path) -> TextIO:
    """A new file of JSON Lines; half of a surrogate pair is written as the escape that JSON spells it with."""
    return open(path, "w", encoding="utf-8", errors="backslashreplace")


def _write_report(
    rows: Sequence[Row],
    found: dict[str, Any],
    options: ChatQualitySettings,
    path: Path,
    *,
    seed: int,
    more: Sequence[str],
) -> None:
    counts = [
        {"source": source, "rows": facts["rows"], "kept": facts["kept"], **facts["faults"]}
        for source, facts in found.items()
    ]
    measures = [
        {"source": source, **{key: value for key, value in facts.items() if value is None or isinstance(value, float)}}
        for source, facts in found.items()
    ]
    picture = figure(path.with_name("measures.png"), caption="Measures of the rows by source.", report=path)
    draw = random.Random(seed)
    examples = []
    for fault in CHAT_FAULTS:
        having = [row for row in rows if fault in row.faults]
        if not having:
            continue
        taken = sorted(draw.sample(range(len(having)), min(options.samples, len(having))))
        listed = [
            {"source": having[at].source, "row": having[at].number, "shown by": shown(having[at].faults)[fault]}
            for at in taken
        ]
        title = f"{fault} ({len(having):,}{'' if fault in options.drop else ', kept'})"
        examples.append(section(title, table(listed), level=3))
    sections = [
        section("Rows and faults", table(counts, _columns(counts))),
        section("Measures", table(measures, _columns(measures)), picture),
        *more,
        section("Rows of each fault", *examples),
    ]
    write_report(path, title="Quality of conversations", sections=sections)


def _columns(rows: Sequence[dict[str, Any]]) -> dict[str, str]:
    return {key: key.replace("_", " ") for row in rows for key in row}


def _draw(rows: Sequence[Row], path: Path) -> None:
    """Histograms by source: words of replies, turns, and lexical diversity."""
    import matplotlib
    import numpy as np

    def values(own: Iterable[Row]) -> dict[str, list[float]]:
        read = [row.examined for row in own if row.examined.text]
        return {
            "Words of a reply (log10)": [float(np.log10(max(n, 1))) for one in read for n in one.reply_words],
            "Turns": [float(len(one.reply_words)) for one in read],
            "Distinct words of 50": [one.diversity for one in read if one.diversity is not None],
        }

    by_source = {
        source: values(row for row in rows if row.source == source)
        for source in dict.fromkeys(row.source for row in rows)
    }
    with matplotlib.rc_context(STYLE):
        drawn, axes = subplots(rows=1, columns=3, size=(10.0, 3.2), heights=(1,))
        for ax, label in zip(axes[0], ("Words of a reply (log10)", "Turns", "Distinct words of 50"), strict=True):
            for number, (source, measures) in enumerate(by_source.items()):
                if measures[label]:
                    ax.hist(
                        measures[label], bins=30, histtype="step", label=source, color=COLOURS[number % len(COLOURS)]
                    )
            ax.set_xlabel(label)
        axes[0, 0].set_ylabel("Count")
        axes[0, 0].legend(frameon=False)
        save_figure(drawn, path)
