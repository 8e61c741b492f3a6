"""Task `contamination`: which items of suites occur in training corpora."""

from pathlib import Path
from typing import Any

from allam_jax import files
from allam_jax.config import require
from allam_jax.corpus.ngram_index import NgramIndex
from allam_jax.evaluation.contamination import overlap, together, touched
from allam_jax.evaluation.items import read_items
from allam_jax.report.markdown import quote, section, table, write_report
from allam_jax.settings import Settings
from allam_jax.tasks.texts import iterate_texts

RESULT = "contamination.json"
_SHOWN = 10  # touched items of each suite in the report


def run(config: Settings, workdir: Path) -> dict[str, Any]:
    """Writes `contamination.json`, which task `suite_report` reads, and a report; returns touched items by suite."""
    options = config.contamination
    require(options.suites, key="contamination.suites", hint="name at least one suite")
    corpora = iterate_texts(options.corpora, key="contamination.corpora")
    suites, rows, sections = {}, [], []
    counts: dict[str, Any] = {}
    for name, suite in options.suites.items():
        items = read_items(suite.path, suite, key=f"contamination.suites.{name}.path").items
        index = NgramIndex.build((item.text for item in items), n=options.words)
        parts = {corpus: overlap(index, read()) for corpus, read in corpora.items()}
        for corpus, part in parts.items():
            rows.append(
                {
                    "suite": name,
                    "corpus": corpus,
                    "items": len(items),
                    "too short": int((~part.searchable).sum()),
                    "touched": int((part.shares >= options.share).sum()),
                    "with any n-gram": int((part.shares > 0).sum()),
                    "documents": part.documents,
                    "documents with any": part.documents_with,
                    "MB": part.bytes / 1e6,
                }
            )
        found = touched([item.id for item in items], together(parts), share=options.share)
        texts = {item.id: item.text for item in items}
        suites[name] = {"items": len(items), "touched": found}
        counts[name] = len(found)
        if found:
            first = list(found.items())[:_SHOWN]
            shown = [f"{share:.0%} of {id_}:\n\n{quote(texts[id_])}" for id_, share in first]
            sections.append(section(name, f"{len(found)} touched items, of which:", *shown))
    said = (
        f"Touched: at least {options.share:.0%} of a question's n-grams of {options.words} words occur in the corpus. "
        "Questions of fewer than five words are too short to be found."
    )
    files.write_json(workdir / RESULT, {"words": options.words, "share": options.share, "suites": suites})
    write_report(
        workdir / "contamination.md",
        title="Items of suites in corpora",
        sections=[section("Overlap", said, table(rows)), *sections],
    )
    return counts
