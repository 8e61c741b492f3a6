"""The page of all results: a section for each experiment, rewritten when it is collected, and a table of verdicts.

A section lies between two comments that name its experiment; what is outside of the sections and of the table is the
author's and stays. Sections are in the order of the names, so that the page does not depend on who was collected first.
Figures are copied to `images/results` beside the page.
"""

import re
import shlex
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from allam_jax import files
from allam_jax.errors import UserError
from allam_jax.files import atomic_path, write_text
from allam_jax.report import markdown

IMAGES = Path("images") / "results"
_SECTION = re.compile(r"<!-- experiment (\S+) -->\n.*?<!-- end of \1 -->\n*", re.DOTALL)
_TABLE = re.compile(r"<!-- verdicts -->\n.*?<!-- end of verdicts -->\n*", re.DOTALL)
_FACTS = re.compile(r"<!-- facts (.*?) \| (.*?) \| (.*?) -->")
# Flags that say where and how a sweep ran here, and change nothing of its results.
_LOCAL = ("workdir", "store", "jobs", "collect", "results", "tracker", "retries", "gpus_per_job", "gpus-per-job")
_NEW = """# Results

Every experiment of `experiments/`, as `--collect --results docs/results.md` wrote it here from finished runs.
"""


def update(page: Path, *, name: str, file: str, collected: Path, command: str) -> None:
    """Writes the section of one experiment, its figures and the table of verdicts.

    Args:
        page: the Markdown file; made if it is not there.
        name: of the experiment: a word.
        file: of the experiment, whose docstring says how it is done.
        collected: where `collect` wrote.
        command: that started the sweep.

    Raises:
        UserError: runs have not finished: a page of results shows none that are half there.
    """
    summary = files.read_json(collected / "summary.json")
    if summary["unfinished"]:
        missing = summary["unfinished"]
        raise UserError(
            f"--results {page}: {len(missing)} runs have not finished ({missing[0]}, ...); let them, then collect again"
        )
    images = page.parent / IMAGES
    for figure in summary["figures"]:
        with atomic_path(images / f"{name}-{figure}.png") as temporary:
            shutil.copyfile(collected / "figures" / f"{figure}.png", temporary)
    text = page.read_text(encoding="utf-8") if page.exists() else _NEW
    sections = {match[1]: match[0] for match in _SECTION.finditer(text)}
    table = (collected / "table.md").read_text(encoding="utf-8")
    sections[name] = _section(name, summary, file=file, table=table, command=command, page=page)
    kept = _TABLE.sub("", _SECTION.sub("", text)).rstrip("\n")
    ordered = [sections[known].rstrip("\n") for known in sorted(sections)]
    write_text(page, "\n\n".join([kept, _verdicts(ordered), *ordered]) + "\n")


def portable(command: str) -> str:
    """The command that anybody repeats a sweep with: without where it wrote and how many jobs ran at a time."""
    kept: list[str] = []
    words = iter(shlex.split(command))
    for word in words:
        flag, separator, _ = word.lstrip("-").partition("=")
        if word.startswith("-") and flag in _LOCAL:
            if not separator and flag != "collect":
                next(words, None)
            continue
        kept.append(word)
    return shlex.join(kept)


def _section(name: str, summary: Mapping[str, Any], *, file: str, table: str, command: str, page: Path) -> str:
    verdict = summary["verdict"] or "nothing to judge"
    seeds = max((row["runs"] for row in summary["table"]), default=0)
    figures = [
        markdown.figure(page.parent / IMAGES / f"{name}-{figure}.png", caption=caption, report=page)
        for figure, caption in summary["figures"].items()
    ]
    environment = summary["environment"]
    versions = ", ".join(f"{what} {environment[what]}" for what in ("Python", "jax") if what in environment)
    body = markdown.section(
        summary["title"],
        f"{summary['claim']} How it was done: the docstring of `{file}`.",
        f"**Verdict: {verdict}**",
        "\n".join(f"- {one['line']}" for one in summary["verdicts"]),
        *figures,
        "Mean ± sample standard deviation over the seeds of each arm.",
        table,
        markdown.code(portable(command), language="sh"),
        f"All stages together, shared ones included, took {markdown.duration(summary['seconds'])} of wall-clock time. "
        f"{versions}; {environment['Host']}; {environment['Devices']}.",
    )
    facts = f"<!-- facts {summary['title']} | {verdict} | {seeds} -->"
    return f"<!-- experiment {name} -->\n{facts}\n{body}\n<!-- end of {name} -->"


def _verdicts(sections: list[str]) -> str:
    rows = []
    for section in sections:
        found = _FACTS.search(section)
        if found:
            title, verdict, seeds = found.groups()
            rows.append({"experiment": f"[{title}](#{_anchor(title)})", "verdict": verdict, "seeds": seeds})
    table = markdown.table(rows, {"experiment": "Experiment", "verdict": "Verdict", "seeds": "Seeds"})
    return f"<!-- verdicts -->\n{table}\n<!-- end of verdicts -->"


def _anchor(title: str) -> str:
    """As GitHub names the anchor of a heading."""
    return re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")
