"""The report of a run of the harness: tables of all suites, what they beat, and prompts as they were sent."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from allam_jax.evaluation.choice_scores import Answered, answered, flips, grouped, summary
from allam_jax.evaluation.harness_tasks import PERMUTED, WrittenSuite
from allam_jax.report.markdown import code, section, table, write_report

PROMPTS_SHOWN = 10  # of each suite
PROBLEMS_SHOWN = 5  # names of items that were left out, for each reason
_COLUMNS = {
    "name": "",
    "items": "items",
    "accuracy": "accuracy %",
    "interval": "95 %",
    "by_characters": "by characters",
    "by_bytes": "by bytes",
    "chance": "chance",
    "majority": "majority answer",
    "macro_f1": "macro-F1",
    "beats": "beats",
}
_SHARES = ("accuracy", "by_characters", "by_bytes", "chance", "majority", "macro_f1")


def answers_of(evaluated: Mapping[str, Any], suites: Sequence[WrittenSuite]) -> dict[str, list[Answered]]:
    """The answers to items with choices of each suite and task; those in another order as `NAME_permuted`.

    Args:
        evaluated: what the harness gave, with samples.
        suites: those of the user's files; all other tasks are the harness's own.
    """
    by_task = dict[str, list[Answered]]()
    for task, logged in evaluated["samples"].items():
        if evaluated["configs"][task]["output_type"] == "multiple_choice":
            fixed = _fixed(logged)
            found = [answered(sample, fixed=fixed) for sample in logged]
            if all(item is not None for item in found):
                by_task[task] = [item for item in found if item is not None]
    of_suites = {}
    for suite in suites:
        for name, tasks in ((suite.name, suite.tasks), (suite.name + PERMUTED, suite.permuted)):
            if tasks:
                of_suites[name] = [item for task in tasks for item in by_task.pop(task)]
    return of_suites | by_task


def collect(
    evaluated: Mapping[str, Any], suites: Sequence[WrittenSuite], answers: Mapping[str, Sequence[Answered]]
) -> dict[str, Any]:
    """The numbers of the report.

    Args:
        evaluated, suites: as in `answers_of`.
        answers: that it gave.

    Returns:
        `choices`: scores of each suite or task of choices, with `subjects`, `categories` and, where the items were
        asked in two orders, `permuted` and `flips`. `metrics`: all metrics of the other tasks, with their intervals.
    """
    own = {task for suite in suites for task in (*suite.tasks, *suite.permuted)}
    of_suites = {suite.name: suite for suite in suites}
    choices = {}
    for name, items in answers.items():
        if name.removesuffix(PERMUTED) in of_suites and name not in of_suites:
            continue
        choices[name] = _scores(items)
        if (suite := of_suites.get(name)) is not None:
            choices[name] |= {"left_out": {key: len(names) for key, names in suite.problems.items()}}
        if (other := answers.get(name + PERMUTED)) is not None:
            choices[name] |= {"permuted": summary(other), "flips": flips(items, other)}
    names = [name for name in evaluated["results"] if name not in own and name not in answers]
    return {"choices": choices, "metrics": {name: _metrics(evaluated["results"][name]) for name in names}}


def write(
    path: Path,
    *,
    found: Mapping[str, Any],
    suites: Sequence[WrittenSuite],
    samples: Mapping[str, Sequence[Mapping[str, Any]]],
    work: Mapping[str, Any],
    title: str,
) -> None:
    """Writes the report, and `prompts.md` beside it with prompts of each suite as the model got them."""
    rows = [_row(name, scores) for name, scores in found["choices"].items()]
    sections = []
    if rows:
        beaten = "A suite *beats* what its whole interval lies above."
        sections.append(section("Choices", table(rows, _COLUMNS), beaten))
    if found["metrics"]:
        metrics = [
            {"task": name, "metric": metric, **values}
            for name, all_ in found["metrics"].items()
            for metric, values in all_.items()
        ]
        sections.append(section("Other tasks", table(metrics)))
    for name, scores in found["choices"].items():
        sections += _details(name, scores)
    left_out = [
        {"suite": suite.name, "reason": reason, "items": len(names), "first": ", ".join(names[:PROBLEMS_SHOWN])}
        for suite in suites
        for reason, names in suite.problems.items()
    ]
    if left_out:
        sections.append(section("Items that could not be asked", table(left_out)))
    sections.append(section("Work", table([dict(work)])))
    write_report(path, title=title, sections=sections)
    prompts = [section(task, *_prompts(logged)) for task, logged in samples.items() if not task.endswith(PERMUTED)]
    write_report(path.with_name("prompts.md"), title="Prompts as they were sent", sections=prompts)


def _scores(items: Sequence[Answered]) -> dict[str, Any]:
    return summary(items) | {"subjects": grouped(items, "subject"), "categories": grouped(items, "category")}


def _fixed(logged: Sequence[Mapping[str, Any]]) -> bool:
    """Whether all items have the same choices, up to their number: letters, or yes and no."""
    shown = {tuple(str(arguments[1]) for arguments in sample["arguments"]) for sample in logged}
    longest = max(shown, key=len)
    return all(choices == longest[: len(choices)] for choices in shown)


def _metrics(results: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Metric -> value and 95 % interval, from the harness's standard errors."""
    found = {}
    for key, value in results.items():
        metric, _, filter_ = key.partition(",")
        if not filter_ or metric.endswith("_stderr") or not isinstance(value, int | float):
            continue
        error = results.get(f"{metric}_stderr,{filter_}")
        named = metric if filter_ == "none" else f"{metric} ({filter_})"
        half = 1.96 * error if isinstance(error, int | float) else None
        found[named] = {
            "value": value,
            "low": None if half is None else value - half,
            "high": None if half is None else value + half,
        }
    return found


def _row(name: str, scores: Mapping[str, Any]) -> dict[str, Any]:
    shares = {key: None if scores[key] is None else f"{100 * scores[key]:.1f}" for key in _SHARES}
    beats = [key for key in ("chance", "majority") if scores[key] is not None and scores["low"] > scores[key]]
    interval = f"{100 * scores['low']:.1f}–{100 * scores['high']:.1f}"
    return {"name": name, "items": scores["items"], **shares, "interval": interval, "beats": ", ".join(beats) or "–"}


def _details(name: str, scores: Mapping[str, Any]) -> list[str]:
    """Sections of one suite: the other order of its choices, categories, subjects."""
    blocks = []
    if "flips" in scores:
        flipped, other = scores["flips"], scores["permuted"]
        blocks.append(
            f"With the choices in another order the accuracy is {100 * other['accuracy']:.1f} % "
            f"({100 * other['low']:.1f}–{100 * other['high']:.1f}), and {100 * flipped['flipped']:.1f} % "
            f"({100 * flipped['low']:.1f}–{100 * flipped['high']:.1f}) of the answers are another choice."
        )
    for key in ("categories", "subjects"):
        if len(scores[key]) > 1:
            blocks.append(
                table([_row(part, of_part) for part, of_part in scores[key].items()], {**_COLUMNS, "name": key})
            )
    return [section(name, *blocks)] if blocks else []


def _prompts(logged: Sequence[Mapping[str, Any]]) -> list[str]:
    blocks = []
    for sample in logged[:PROMPTS_SHOWN]:
        arguments = [tuple(map(str, one)) for one in sample["arguments"]]
        continuations = " | ".join(repr(one[1]) for one in arguments if len(one) > 1)
        blocks += [code(arguments[0][0]), f"Scored: {code(continuations)}" if continuations else ""]
    return [block for block in blocks if block]
