"""After the runs: all metrics in one Parquet file, a table over seeds, figures, verdicts and a report of one page.

Under `WORKDIR/collected`: `metrics.parquet` (run, one column an axis, stage, step, metric, value), `runs.parquet` (one
row a run: its labels, measures and seconds), `table.md`, `figures/*.png`, `summary.json` and `report.md`.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from allam_jax import files
from allam_jax.ablation.claims import Verdict, judge, overall
from allam_jax.ablation.experiment import Experiment
from allam_jax.ablation.figures import arm_name
from allam_jax.ablation.measures import METRICS_FILE, all_metrics
from allam_jax.ablation.outcomes import Outcome, Summary, by_arm, by_seed, summarise
from allam_jax.ablation.vary import SEED
from allam_jax.launch.runs import Run
from allam_jax.report import markdown
from allam_jax.report.environment import environment, environment_facts
from allam_jax.tasks.recipe import RESULT_FILE

FOLDER = "collected"
_WIDE = 8  # a table of more measures has a line for each of them, and the arms as columns


def collect(experiment: Experiment, runs: Sequence[Run], *, workdir: Path, command: str) -> dict[str, Any]:
    """Gathers, draws and judges the finished runs; see the module.

    Args:
        experiment: says what to measure, draw and judge.
        runs: of the sweep; those that have not finished are named and left out.
        workdir: of the sweep.
        command: the command line that repeats it, for the report.

    Returns:
        What `summary.json` holds: title, claim, verdict, verdicts, table, unfinished runs, seconds.
    """
    finished = [run for run in runs if run.finished]
    unfinished = [run.name for run in runs if not run.finished]
    outcomes = read_outcomes(experiment, finished)
    folder = workdir / FOLDER
    _write_parquet(experiment, finished, outcomes, folder=folder)
    rows = table_rows(experiment, outcomes)
    verdicts = [judge(claim, outcomes) for claim in experiment.claims]
    summary = {
        "title": experiment.title,
        "claim": experiment.claim,
        "verdict": overall(verdicts) if verdicts else None,
        "verdicts": [_plain(verdict, experiment) for verdict in verdicts],
        "table": [{key: dataclasses.asdict(v) if isinstance(v, Summary) else v for key, v in r.items()} for r in rows],
        "unfinished": unfinished,
        "seconds": round(stage_seconds(finished), 1),
        "figures": {figure.name: figure.caption for figure in experiment.figures},
        "environment": environment_facts(),
    }
    files.write_json(folder / "summary.json", summary)
    files.write_text(folder / "table.md", table_text(experiment, rows) + "\n")
    if outcomes:
        for figure in experiment.figures:
            measures = [experiment.measure(name) for name in figure.measure_names]
            figure.draw(outcomes, measures, folder / "figures" / f"{figure.name}.png")
    _write_report(experiment, summary, verdicts, rows, folder=folder, command=command)
    return summary


def read_outcomes(experiment: Experiment, runs: Sequence[Run]) -> list[Outcome]:
    """The measures of finished runs."""
    users: dict[str, int] = {}
    for run in runs:
        for stage in run.stages:
            users[stage.fingerprint] = users.get(stage.fingerprint, 0) + 1
    outcomes = []
    for run in runs:
        read = {measure.name: measure.read(run.directories) for measure in experiment.measures}
        own = [run.directories[stage.name] for stage in run.stages if users[stage.fingerprint] == 1]
        outcomes.append(
            Outcome(
                run=run.name,
                labels=run.labels,
                values={m.name: float(read[m.name]) for m in experiment.measures if not m.curve},
                curves={m.name: read[m.name] for m in experiment.measures if m.curve},
                seconds=sum(_seconds(directory) for directory in own),
            )
        )
    return outcomes


def stage_seconds(runs: Sequence[Run]) -> float:
    """What all stages of the runs took together, each counted once."""
    return sum(_seconds(directory) for directory in {d for run in runs for d in run.directories.values()})


def table_rows(experiment: Experiment, outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """A row for each arm: its settings, the number of runs, and a Summary over seeds of each measure of one number."""
    rows = []
    for arm, some in by_arm(outcomes, experiment.axes).items():
        row: dict[str, Any] = dict(zip(experiment.axes, arm, strict=True)) | {"runs": len(some)}
        for measure in experiment.measures:
            if not measure.curve:
                row[measure.name] = summarise(by_seed(some, measure.name).values())
        rows.append(row)
    return rows


def table_text(experiment: Experiment, rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as a Markdown table, numbers as mean ± standard deviation over seeds; see `_WIDE`."""
    headings = {axis: axis for axis in experiment.axes} | {"runs": "seeds"}
    headings |= {measure.name: measure.label for measure in experiment.measures if not measure.curve}
    shown = [
        {key: _mean_and_std(value) if isinstance(value, Summary) else value for key, value in row.items()}
        for row in rows
    ]
    if len(headings) - len(experiment.axes) - 1 <= _WIDE:
        return markdown.table(shown, headings)
    names = [arm_name(tuple(row[axis] for axis in experiment.axes)) for row in rows]
    lines = [
        {"": heading} | {name: row[key] for name, row in zip(names, shown, strict=True)}
        for key, heading in headings.items()
        if key not in experiment.axes
    ]
    return markdown.table(lines, {"": ", ".join(experiment.axes)} | {name: name for name in names})


def _mean_and_std(summary: Summary) -> str:
    if summary.count < 2:
        return markdown.number(summary.mean)
    return f"{markdown.number(summary.mean)} ± {summary.std:.2g}"


def _seconds(directory: Path) -> float:
    return files.read_json(directory / RESULT_FILE)["seconds"]


def _plain(verdict: Verdict, experiment: Experiment) -> dict[str, Any]:
    return {
        "claim": verdict.claim.text,
        "outcome": verdict.outcome,
        "measure": verdict.claim.measure,
        "effect": verdict.effect,
        "spread": verdict.spread,
        "interval": list(verdict.interval),
        "seeds": verdict.seeds,
        "line": verdict.line(unit=experiment.measure(verdict.claim.measure).unit),
    }


def _write_parquet(experiment: Experiment, runs: Sequence[Run], outcomes: Sequence[Outcome], *, folder: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    axes = list(dict.fromkeys(axis for run in runs for axis in run.labels))
    kinds = {axis: _column_type(axis, runs, pyarrow) for axis in axes}
    named = [pyarrow.field("run", pyarrow.string()), *(pyarrow.field(axis, kinds[axis]) for axis in axes)]
    metrics = [("stage", pyarrow.string()), ("step", pyarrow.int64()), ("metric", pyarrow.string())]
    schema = pyarrow.schema([*named, *metrics, ("value", pyarrow.float64())])
    folder.mkdir(parents=True, exist_ok=True)
    with (
        files.atomic_path(folder / "metrics.parquet") as temporary,
        parquet.ParquetWriter(temporary, schema, compression="zstd") as writer,
    ):
        for run in runs:
            rows = list(_metric_rows(run))
            labels = {axis: _label(run.labels.get(axis), kinds[axis], pyarrow) for axis in axes}
            writer.write_table(pyarrow.Table.from_pylist([{"run": run.name} | labels | row for row in rows], schema))
    numbers = [m.name for m in experiment.measures if not m.curve]
    schema = pyarrow.schema([*named, *((name, pyarrow.float64()) for name in (*numbers, "seconds"))])
    rows = [
        {"run": outcome.run, "seconds": outcome.seconds}
        | {axis: _label(outcome.labels.get(axis), kinds[axis], pyarrow) for axis in axes}
        | outcome.values
        for outcome in outcomes
    ]
    with files.atomic_path(folder / "runs.parquet") as temporary:
        parquet.write_table(pyarrow.Table.from_pylist(rows, schema), temporary, compression="zstd")


def _metric_rows(run: Run) -> Iterator[dict[str, Any]]:
    for stage, directory in run.directories.items():
        if (directory / METRICS_FILE).is_file():
            for metric, points in all_metrics(directory / METRICS_FILE).items():
                for step, value in points:
                    yield {"stage": stage, "step": step, "metric": metric, "value": value}


def _column_type(axis: str, runs: Sequence[Run], pyarrow: Any) -> Any:
    """Whole numbers, numbers, or else text."""
    kinds = {type(run.labels[axis]) for run in runs if axis in run.labels}
    if kinds == {int}:
        return pyarrow.int64()
    return pyarrow.float64() if kinds <= {int, float} else pyarrow.string()


def _label(value: Any, kind: Any, pyarrow: Any) -> Any:
    return str(value) if kind == pyarrow.string() and value is not None else value


def _write_report(
    experiment: Experiment,
    summary: Mapping[str, Any],
    verdicts: Sequence[Verdict],
    rows: Sequence[Mapping[str, Any]],
    *,
    folder: Path,
    command: str,
) -> None:
    path = folder / "report.md"
    lines = [f"- {verdict.line(unit=experiment.measure(verdict.claim.measure).unit)}" for verdict in verdicts]
    missing = summary["unfinished"]
    blocks = [
        markdown.section("Claim", experiment.claim),
        markdown.section(f"Verdict: {summary['verdict'] or 'nothing to judge'}", "\n".join(lines)),
    ]
    if missing:
        blocks.append(f"Not finished, and left out ({len(missing)}): {', '.join(missing)}.")
    if rows:
        drawn = [
            markdown.figure(folder / "figures" / f"{figure.name}.png", caption=figure.caption, report=path)
            for figure in experiment.figures
        ]
        note = f"Mean ± sample standard deviation over the seeds of each arm ({', '.join(experiment.axes) or SEED})."
        blocks.append(markdown.section("Results", table_text(experiment, rows), note, *drawn))
    spent = f"All stages together took {markdown.duration(summary['seconds'])}; several may have run side by side."
    blocks.append(markdown.section("Command", markdown.code(command, language="sh")))
    blocks.append(markdown.section("Environment", environment(), spent))
    markdown.write_report(path, title=experiment.title, sections=blocks)
