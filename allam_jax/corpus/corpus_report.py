"""The report of a corpus: what was read, kept and dropped, and why, with figures and with samples to read."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from allam_jax.corpus.corpus_figures import draw_corpus
from allam_jax.corpus.corpus_plan import CorpusPlan
from allam_jax.corpus.pipeline import Tallies
from allam_jax.corpus.resolve import groups_of, took
from allam_jax.corpus.rules import Rules, describe
from allam_jax.corpus.tally import merge_tallies
from allam_jax.files import write_json, write_text
from allam_jax.report.markdown import plain, quote, section, table

_DOMAINS = 20
_FILES = 20


def write_corpus_report(plan: CorpusPlan, tallies: Tallies, *, workdir: Path) -> None:
    """Writes `report.md`, `report.json` (the numbers), `samples.md` and figures into `workdir`.

    The tallies are those that `pipeline.run` returned. The plan's work directory must still exist.
    """
    languages: dict[str, dict[str, Any]] = {}
    sets: dict[str, dict[str, Any]] = {}  # sources of one language under one set of rules
    total: dict[str, Any] = {}
    for name, tally in tallies.items():
        for grouped, key in ((languages, plan.language(name)), (sets, _set_of(plan, name))):
            grouped[key] = merge_tallies(grouped.get(key, {}), tally)
    for tally in languages.values():
        total = merge_tallies(total, tally)
    groups = groups_of(plan)
    images = draw_corpus(plan, languages, sets, groups, total, workdir=workdir)
    sections = [
        "# Corpus",
        _overview(tallies),
        _rules(plan, sets, images),
        _duplicates(total, groups, images),
        _care(tallies),
        _not_read(plan, tallies),
        _files(total),
        _domains(total, images),
        _speed(merge_tallies(total, took(plan))),
    ]
    write_text(workdir / "report.md", "\n\n".join(filter(None, sections)) + "\n")
    write_text(workdir / "samples.md", _samples(plan, sets))
    write_json(workdir / "report.json", {"sources": dict(tallies), "groups": groups})


def _overview(tallies: Tallies) -> str:
    rows = []
    for name, tally in tallies.items():
        read, written = tally.get("read", {}), tally.get("written", {})
        row = {
            "source": name,
            "read": int(read.get("documents", 0)),
            "MB read": _mb(read),
            "unreadable": sum(sum(file["bad"].values()) for file in tally.get("files", {}).values()),
            "left empty": int(tally.get("empty", 0)),
            "dropped by rules": sum(int(counts.get("dropped", 0)) for counts in tally.get("rules", {}).values()),
            "duplicates": sum(int(counts["documents"]) for counts in tally.get("duplicates", {}).values()),
            "written": int(written.get("documents", 0)),
            "MB written": _mb(written),
        }
        rows.append(row)
    return "Documents by source. MB are megabytes of UTF-8 text.\n\n" + table(rows, tuple(rows[0]))


def _rules(plan: CorpusPlan, sets: Tallies, images: Mapping[str, str]) -> str:
    rows = []
    for label, tally in sets.items():
        for name, rule in sorted(_rules_of(plan, label).items()):
            counts = tally.get("rules", {}).get(name, {})
            fails = int(counts.get("fails", 0))
            row = {
                "language, set": label,
                "rule": name,
                "what it does": describe(rule),
                "failed": fails,
                "of all (%)": 100 * fails / max(int(tally["read"]["documents"]), 1),
                "dropped": int(counts.get("dropped", 0)),
                "MB dropped": _mb(counts),
            }
            rows.append(row)
    if not rows:
        return ""
    text = (
        "*Failed* counts every document that fails the rule. *Dropped* counts a document once, under the first rule "
        "(by name) that it fails. [samples.md](samples.md) shows documents of each kind."
    )
    figures = ("drops", *(key for key in images if key.startswith("tags_")))
    return section("Rules", text, table(rows), *_images(images, figures))


def _duplicates(total: Mapping[str, Any], groups: Mapping[str, Mapping[int, int]], images: Mapping[str, str]) -> str:
    if not groups:
        return ""
    rows = []
    for reason, sizes in groups.items():
        counts = total.get("duplicates", {}).get(reason, {})
        row = {"reason": reason, "dropped": int(counts.get("documents", 0)), "MB": _mb(counts)}
        rows.append(row | {"groups": sum(sizes.values()), "largest group": max(sizes, default=0)})
    return section("Duplicates", table(rows, tuple(rows[0])), *_images(images, ("groups",)))


def _care(tallies: Tallies) -> str:
    rows = [
        {"source": name, "setting": setting, "count": int(count)}
        for name, tally in tallies.items()
        for setting, count in sorted({**tally.get("care", {}), **tally.get("redacted", {})}.items())
    ]
    if not rows:
        return ""
    text = "Documents that each setting changed. For email, phone, iban and ip: the number of items replaced."
    return section("Text care", text, table(rows, tuple(rows[0])))


def _not_read(plan: CorpusPlan, tallies: Tallies) -> str:
    """Everything at the sources' paths that is in no document: whole files, records, and values of good records."""
    rows = []
    for name, tally in tallies.items():
        for reason, skipped in sorted(plan.skipped.get(name, {}).items()):
            rows.append(
                {"source": name, "what": "files", "reason": reason, "count": len(skipped), "example": skipped[0]}
            )
        counts: dict[tuple[str, str], int] = {}
        examples: dict[tuple[str, str], str] = {}
        for file, read in sorted(tally.get("files", {}).items()):
            damage = {read["damage"].partition(" (")[0]: 1} if read["damage"] else {}
            is_empty = not (read["documents"] or damage or read["bad"] or read["other"])
            kinds = {
                "files": {"empty": 1} if is_empty else {},
                "rest of a file": damage,
                "records": read["bad"],
                "not text": read["other"],
                "values": read["unread"],
            }
            for what, reasons in kinds.items():
                for reason, count in reasons.items():
                    counts[what, reason] = counts.get((what, reason), 0) + int(count)
                    examples.setdefault((what, reason), file)
        for form, count in tally.get("unread", {}).items():
            counts["values", form] = int(count)
        for (what, reason), count in sorted(counts.items()):
            example = examples.get((what, reason), "")
            rows.append({"source": name, "what": what, "reason": reason, "count": count, "example": example})
    if not rows:
        return ""
    text = "Records, and rests of damaged files, are in no document. Values are missing in documents that are good."
    return section("Not read", text, table(rows, tuple(rows[0])))


def _files(total: Mapping[str, Any]) -> str:
    files = total.get("files", {})
    bad = {file: sum(counts["bad"].values()) for file, counts in files.items()}
    named = sorted((file for file in files if bad[file] or files[file]["damage"]), key=lambda file: -bad[file])
    if not named:
        return ""
    rows = [
        {
            "file": file,
            "good": int(files[file]["documents"]),
            "unreadable": "; ".join(f"{int(count)} {reason}" for reason, count in sorted(files[file]["bad"].items())),
            "damage": files[file]["damage"],
        }
        for file in named[:_FILES]
    ]
    return section("Files with unreadable records", table(rows, tuple(rows[0])), *_more(named, _FILES))


def _domains(total: Mapping[str, Any], images: Mapping[str, str]) -> str:
    before, after = (total.get("domains", {}).get(key, {}) for key in ("before", "after"))
    named = [name for name in sorted(before, key=lambda name: (-before[name], name)) if name]
    if not named:
        return ""
    rows = [
        {"domain": name, "before": int(before[name]), "after": int(after.get(name, 0))} for name in named[:_DOMAINS]
    ]
    blocks = (table(rows, tuple(rows[0])), *_more(named, _DOMAINS), *_images(images, ("domains",)))
    return section("Domains", "Number of documents before and after the pipeline.", *blocks)


def _speed(total: Mapping[str, Any]) -> str:
    rows = []
    for name, step in total.get("steps", {}).items():
        documents, seconds = int(step["documents"]), max(step["seconds"], 1e-9)
        row = {"step": name, "documents": documents, "seconds": seconds, "documents/s": int(documents / seconds)}
        rows.append(row | {"MB/s": step["bytes"] / 1e6 / seconds or None})
    text = (
        "Speed of each step on one core. Seconds are processor time, summed over all tasks. The steps `exact`, `bands` "
        "and `clusters` read no text; `clusters` counts pairs of documents."
    )
    return section("Speed", text, table(rows, tuple(rows[0])))


def _samples(plan: CorpusPlan, sets: Tallies) -> str:
    lines = [
        "# Samples",
        "",
        "Up to ten documents of each kind. The kept documents are those nearest to the rule's threshold.",
    ]
    for label, tally in sets.items():
        rules = _rules_of(plan, label)
        for kind in ("dropped", "kept"):
            for name, rows in sorted(tally.get("samples", {}).get(kind, {}).items()):
                what = f" ({describe(rules[name])})" if name in rules else ""
                lines += ["", f"## {plain(f'{label}: {kind}, {name}{what}')}"]
                for *_, row in rows:
                    value = "" if row["value"] is None else f", value {row['value']:.4g}"
                    lines += ["", f"{plain(row['id'])}{value}", "", quote(row["text"])]
    return "\n".join(lines) + "\n"


def _set_of(plan: CorpusPlan, source: str) -> str:
    rules = plan.sources[source].rules
    return f"{plan.language(source)}, {rules}" if rules else plan.language(source)


def _rules_of(plan: CorpusPlan, label: str) -> Rules:
    return plan.rules(next(name for name in plan.sources if _set_of(plan, name) == label))


def _images(images: Mapping[str, str], names: Sequence[str]) -> list[str]:
    return [f"![{name}]({images[name]})" for name in names if name in images]


def _more(names: Sequence[str], shown: int) -> list[str]:
    return [f"{len(names) - shown} more are in report.json."] if len(names) > shown else []


def _mb(counts: Mapping[str, Any]) -> float:
    return counts.get("bytes", 0) / 1e6
