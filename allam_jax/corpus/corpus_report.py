"""The report of a corpus: what was read, kept and dropped, and why; with figures, and samples for a human to read."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from allam_jax.corpus import corpus_figures
from allam_jax.corpus.corpus_plan import Plan
from allam_jax.corpus.resolve import groups_of, took
from allam_jax.corpus.tally import merge
from allam_jax.files import write_json, write_text
from allam_jax.report import markdown

_DOMAINS = 20
_FILES = 20


def write_report(plan: Plan, tallies: Mapping[str, Mapping[str, Any]], *, workdir: Path) -> None:
    """Writes `report.md`, `report.json` (the numbers), `samples.md` and figures into `workdir`.

    Args:
      plan: What was done; its work directory must still be there.
      tallies: Source -> tally, as `pipeline.run` gives them.
      workdir: Where to write.
    """
    languages: dict[str, dict[str, Any]] = {}
    sets: dict[str, dict[str, Any]] = {}  # sources of one language under one set of rules
    for name, tally in tallies.items():
        for grouped, key in ((languages, plan.language(name)), (sets, _set_of(plan, name))):
            grouped[key] = merge(grouped.get(key, {}), tally)
    total: dict[str, Any] = {}
    for tally in languages.values():
        total = merge(total, tally)
    groups = groups_of(plan)
    images = corpus_figures.draw(plan, languages, sets, groups, total, workdir=workdir)
    sections = [
        "# Corpus",
        _overview(tallies),
        _rules(plan, sets, images),
        _duplicates(total, groups, images),
        _care(tallies),
        _files(total),
        _domains(total, images),
        _speed(merge(total, took(plan))),
    ]
    write_text(workdir / "report.md", "\n\n".join(filter(None, sections)) + "\n")
    write_text(workdir / "samples.md", _samples(plan, sets))
    write_json(workdir / "report.json", {"sources": dict(tallies), "groups": groups})


def dropped_by_rules(tally: Mapping[str, Any]) -> int:
    """Documents that some rule dropped."""
    return sum(int(counts.get("dropped", 0)) for counts in tally.get("rules", {}).values())


def _overview(tallies: Mapping[str, Mapping[str, Any]]) -> str:
    rows = []
    for name, tally in tallies.items():
        bad = sum(sum(file["bad"].values()) for file in tally.get("files", {}).values())
        duplicates = sum(int(counts["documents"]) for counts in tally.get("duplicates", {}).values())
        read, written = tally.get("read", {}), tally.get("written", {})
        rows.append(
            [
                name,
                int(read.get("documents", 0)),
                _mb(read),
                bad,
                int(tally.get("empty", 0)),
                dropped_by_rules(tally),
                duplicates,
                int(written.get("documents", 0)),
                _mb(written),
            ]
        )
    header = ["source", "read", "MB", "unreadable", "left empty", "dropped by rules", "duplicates", "written", "MB"]
    return "Documents by source; MB are UTF-8 text.\n\n" + _table(header, rows)


def _rules(plan: Plan, sets: Mapping[str, Mapping[str, Any]], images: Mapping[str, str]) -> str:
    rows = []
    for label, tally in sets.items():
        known = _rules_of(plan, label)
        for name, counts in sorted(tally.get("rules", {}).items()):
            read = max(int(tally["read"]["documents"]), 1)
            fails, dropped = int(counts.get("fails", 0)), int(counts.get("dropped", 0))
            share = 100 * fails / read
            rows.append([label, name, str(known[name]), fails, share, dropped, _mb(counts)])
    if not any(_rules_of(plan, label) for label in sets):
        return ""
    header = ["language, set", "rule", "what it does", "against", "of all (%)", "dropped", "MB"]
    text = (
        "## Rules\n\n*Against* counts every document that the rule is against; *dropped* counts a document once, under "
        "the first such rule by name. Documents of each kind: [samples.md](samples.md).\n\n"
    )
    return text + _table(header, rows) + _images(images, ("drops", *(key for key in images if key.startswith("tags_"))))


def _duplicates(total: Mapping[str, Any], groups: Mapping[str, Mapping[int, int]], images: Mapping[str, str]) -> str:
    if not groups:
        return ""
    rows = []
    for reason, sizes in groups.items():
        counts = total.get("duplicates", {}).get(reason, {})
        largest = max(sizes, default=0)
        rows.append([reason, int(counts.get("documents", 0)), _mb(counts), sum(sizes.values()), largest])
    header = ["reason", "dropped", "MB", "groups", "largest group"]
    return "## Duplicates\n\n" + _table(header, rows) + _images(images, ("groups",))


def _care(tallies: Mapping[str, Mapping[str, Any]]) -> str:
    rows = [
        [name, switch, int(count)]
        for name, tally in tallies.items()
        for switch, count in sorted({**tally.get("care", {}), **tally.get("redacted", {})}.items())
    ]
    if not rows:
        return ""
    text = "## Text care\n\nDocuments changed by each switch; redacted items for e-mail, phone, IBAN and IP.\n\n"
    return text + _table(["source", "switch", "count"], rows)


def _files(total: Mapping[str, Any]) -> str:
    bad = {
        file: counts
        for file, counts in total.get("files", {}).items()
        if sum(counts["bad"].values()) or counts["damage"]
    }
    if not bad:
        return ""
    ordered = sorted(bad.items(), key=lambda item: -sum(item[1]["bad"].values()))
    rows = [
        [
            file,
            int(counts["documents"]),
            "; ".join(f"{int(number)} {reason}" for reason, number in sorted(counts["bad"].items())),
            counts["damage"],
        ]
        for file, counts in ordered[:_FILES]
    ]
    more = f"\n\n{len(bad) - _FILES} more files: report.json." if len(bad) > _FILES else ""
    return "## Files with unreadable records\n\n" + _table(["file", "good", "unreadable", "damage"], rows) + more


def _domains(total: Mapping[str, Any], images: Mapping[str, str]) -> str:
    before, after = (total.get("domains", {}).get(key, {}) for key in ("before", "after"))
    named = [name for name in sorted(before, key=lambda name: (-before[name], name)) if name]
    if not named:
        return ""
    rows = [[name, int(before[name]), int(after.get(name, 0))] for name in named[:_DOMAINS]]
    more = f"\n\n{len(named) - _DOMAINS} more: report.json." if len(named) > _DOMAINS else ""
    text = "## Domains\n\nDocuments before and after.\n\n" + _table(["domain", "before", "after"], rows)
    return text + more + _images(images, ("domains",))


def _speed(total: Mapping[str, Any]) -> str:
    rows = []
    for name, step in total.get("steps", {}).items():
        seconds = max(step["seconds"], 1e-9)
        rate, speed = int(step["documents"] / seconds), step["bytes"] / 1e6 / seconds or None
        rows.append([name, int(step["documents"]), seconds, rate, speed])
    text = (
        "## Speed\n\nOf each step, on one core: seconds are of the processor, summed over all tasks. Steps that "
        "compare documents read no text; `clusters` counts pairs.\n\n"
    )
    return text + _table(["step", "documents", "seconds", "documents/s", "MB/s"], rows)


def _samples(plan: Plan, sets: Mapping[str, Mapping[str, Any]]) -> str:
    lines = ["# Samples", "", "Up to ten documents each. Kept ones are those that the rule came nearest to dropping."]
    for label, tally in sets.items():
        rules = _rules_of(plan, label)
        for kind in ("dropped", "kept"):
            for name, rows in sorted(tally.get("samples", {}).get(kind, {}).items()):
                what = f" ({rules[name]})" if name in rules else ""
                lines += ["", f"## {label}: {kind}, {name}{what}"]
                for *_, row in rows:
                    value = "" if row["value"] is None else f", value {row['value']:.4g}"
                    text = " ".join(row["text"].split())
                    lines += ["", f"`{row['id']}`{value}", "", f"> {text}"]
    return "\n".join(lines) + "\n"


def _set_of(plan: Plan, source: str) -> str:
    rules = plan.sources[source]["rules"]
    return f"{plan.language(source)}, {rules}" if rules else plan.language(source)


def _rules_of(plan: Plan, label: str) -> dict[str, Any]:
    return {rule.name: rule for name in plan.sources if _set_of(plan, name) == label for rule in plan.rules(name)}


def _images(images: Mapping[str, str], names: Sequence[str]) -> str:
    return "".join(f"\n\n![{name}]({images[name]})" for name in names if name in images)


def _table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    return markdown.table(
        [{str(i): cell for i, cell in enumerate(row)} for row in rows], {str(i): name for i, name in enumerate(header)}
    )


def _mb(counts: Mapping[str, Any]) -> float:
    return counts.get("bytes", 0) / 1e6
