"""The page of all results: a section per experiment, rewritten when it is collected, and a table of verdicts.

Two comments that name the experiment enclose its section. The text outside of the sections and of the table belongs to
the author and stays as it is. Sections are in alphabetical order, whichever experiment was collected first. Figures are
copied to `images/results` beside the page.
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
# Flags that do not change the numbers of a sweep.
_LOCAL = ("workdir", "store", "collect", "results", "tracker", "retries")
_NEW = """# Results

The experiments of `experiments/`. `--collect --results docs/results.md` wrote each section from finished runs.
"""


def update(page: Path, *, name: str, file: str, collected: Path, command: str) -> None:
    """Writes the section of one experiment, its figures and the table of verdicts into a Markdown page, new or old.

    `name` is that of the experiment, one word; `file` is its file, whose docstring says how it is done. `collected` is
    the folder that `collect` wrote, and `command` started the sweep.

    Raises:
        UserError: some runs have not finished; the page shows complete experiments only.
    """
    summary = files.read_json(collected / "summary.json")
    if summary["unfinished"]:
        missing = summary["unfinished"]
        raise UserError(
            f"--results {page}: {len(missing)} runs are unfinished ({missing[0]}, ...); finish them and collect again"
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


def findings(summary: Mapping[str, Any], *, table: str, figures: str, report: Path, command: str) -> list[str]:
    """Collected results as Markdown blocks: claim, verdicts, figures, table, command and time.

    `summary` is what `collect` returned, `table` the Markdown table over seeds, `figures` the beginning of the path of
    every figure (NAME.png follows), and `command` repeats the sweep. Links are relative to the file `report`.
    """
    pictures = [
        markdown.figure(Path(f"{figures}{name}.png"), caption=caption, report=report)
        for name, caption in summary["figures"].items()
    ]
    environment = summary["environment"]
    versions = ", ".join(f"{what} {environment[what]}" for what in ("Python", "jax") if what in environment)
    return [
        summary["claim"],
        f"**Verdict: {summary['verdict'] or 'nothing to judge'}**",
        "\n".join(f"- {one['line']}" for one in summary["verdicts"]),
        *pictures,
        "Mean ± sample standard deviation over the seeds of each arm.",
        table,
        markdown.code(command, language="sh"),
        f"The times of all stages, shared ones included, add up to {markdown.duration(summary['seconds'])}; jobs may "
        f"have run side by side. {versions}; {environment['Host']}; {environment['Devices']}.",
    ]


def portable(command: str) -> str:
    """The command that repeats a sweep: without the flags that have no influence on its numbers.

    `--jobs` stays: it divides the cores among the jobs, and the number of cores changes the last bits.
    """
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
    seeds = max((row["runs"] for row in summary["table"]), default=0)
    claim, *blocks = findings(
        summary, table=table, figures=f"{page.parent / IMAGES / name}-", report=page, command=portable(command)
    )
    body = markdown.section(summary["title"], f"{claim} The docstring of `{file}` says how it was done.", *blocks)
    facts = f"<!-- facts {summary['title']} | {summary['verdict'] or 'nothing to judge'} | {seeds} -->"
    return f"<!-- experiment {name} -->\n{facts}\n{body}\n<!-- end of {name} -->"


def _verdicts(sections: list[str]) -> str:
    rows = []
    for section in sections:
        found = _FACTS.search(section)
        if found:
            title, verdict, seeds = found.groups()
            rows.append(
                {"experiment": markdown.Markdown(f"[{title}](#{_anchor(title)})"), "verdict": verdict, "seeds": seeds}
            )
    table = markdown.table(rows, {"experiment": "Experiment", "verdict": "Verdict", "seeds": "Seeds"})
    return f"<!-- verdicts -->\n{table}\n<!-- end of verdicts -->"


def _anchor(title: str) -> str:
    """The anchor that GitHub gives to a heading."""
    return re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")
