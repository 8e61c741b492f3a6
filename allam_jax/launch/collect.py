"""Collects finished runs: all metrics in one Parquet file, a table over seeds, figures, verdicts and a report.

`WORKDIR/collected` has `metrics.parquet` (run, one column per axis, stage, step, metric, value), `runs.parquet` (a row
per run: its labels, measures and seconds), `table.md`, `figures/*.png`, `summary.json` and `report.md`.
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
from allam_jax.ablation.results_page import findings
from allam_jax.launch.runs import SweepRun
from allam_jax.report import markdown
from allam_jax.report.environment import environment, environment_facts
from allam_jax.tasks.recipe import read_result

FOLDER = "collected"
_WIDE = 8  # a table with more measures than this has a line per measure and a column per arm


def collect(experiment: Experiment, runs: Sequence[SweepRun], *, workdir: Path, command: str) -> dict[str, Any]:
    """Writes the files that the module describes and returns the content of `summary.json`.

    Unfinished runs are named and left out. The report shows the command line that repeats the sweep.
    """
    finished = [run for run in runs if run.finished]
    unfinished = [run.name for run in runs if not run.finished]
    outcomes = read_outcomes(experiment, finished)
    folder = workdir / FOLDER
    _write_parquet(experiment, finished, outcomes, folder=folder)
    rows = table_rows(experiment, outcomes)
    verdicts = [judge(claim, outcomes) for claim in experiment.claims]
    directories = {directory for run in finished for directory in run.directories.values()}
    summary = {
        "title": experiment.title,
        "claim": experiment.claim,
        "verdict": overall(verdicts) if verdicts else None,
        "verdicts": [_plain(verdict, experiment) for verdict in verdicts],
        "table": [{key: dataclasses.asdict(v) if isinstance(v, Summary) else v for key, v in r.items()} for r in rows],
        "unfinished": unfinished,
        "seconds": round(sum(map(_seconds, directories)), 1),
        "figures": {figure.name: figure.caption for figure in experiment.figures} if outcomes else {},
        "environment": environment_facts(),
    }
    files.write_json(folder / "summary.json", summary)
    table = table_text(experiment, rows)
    files.write_text(folder / "table.md", table + "\n")
    if outcomes:
        for figure in experiment.figures:
            measures = [experiment.measure(name) for name in figure.measure_names]
            figure.draw(outcomes, measures, folder / "figures" / f"{figure.name}.png")
    report = folder / "report.md"
    blocks = findings(summary, table=table, figures=str(folder / "figures") + "/", report=report, command=command)
    if unfinished:
        blocks.append(f"Unfinished runs, which are left out ({len(unfinished)}): {', '.join(unfinished)}.")
    blocks.append(markdown.section("Environment", environment()))
    markdown.write_report(report, title=experiment.title, sections=blocks)
    return summary


def read_outcomes(experiment: Experiment, runs: Sequence[SweepRun]) -> list[Outcome]:
    """The outcome of each run; all must have finished."""
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
                seconds=sum(map(_seconds, own)),
            )
        )
    return outcomes


def table_rows(experiment: Experiment, outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """A row per arm: its settings, the number of runs, and a Summary over seeds of each measure of one number."""
    rows = []
    for arm, some in by_arm(outcomes, experiment.axes).items():
        row: dict[str, Any] = dict(zip(experiment.axes, arm, strict=True)) | {"runs": len(some)}
        for measure in experiment.measures:
            if not measure.curve:
                row[measure.name] = summarise(by_seed(some, measure.name).values())
        rows.append(row)
    return rows


def table_text(experiment: Experiment, rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as a Markdown table. Numbers are mean ± standard deviation over seeds. See also `_WIDE`."""
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
    mean = markdown.number(summary.mean)
    return mean if summary.count < 2 else f"{mean} ± {summary.std:.2g}"


def _seconds(directory: Path) -> float:
    return read_result(directory)["seconds"]


def _plain(verdict: Verdict, experiment: Experiment) -> dict[str, Any]:
    return {
        "claim": verdict.claim.text,
        "outcome": verdict.outcome,
        "measure": verdict.claim.measure,
        "effect": verdict.effect,
        "spread": verdict.spread,
        "interval": list(verdict.interval),
        "smallest_effect": verdict.smallest,
        "seeds": verdict.seeds,
        "line": verdict.line(unit=experiment.measure(verdict.claim.measure).unit),
    }


def _write_parquet(
    experiment: Experiment, runs: Sequence[SweepRun], outcomes: Sequence[Outcome], *, folder: Path
) -> None:
    import pyarrow
    from pyarrow import parquet

    text, number, whole = pyarrow.string(), pyarrow.float64(), pyarrow.int64()
    kinds: dict[str, Any] = {"run": text}
    for axis in dict.fromkeys(axis for run in runs for axis in run.labels):
        types = {type(run.labels[axis]) for run in runs if axis in run.labels}
        kinds[axis] = whole if types == {int} else number if types <= {int, float} else text
    labels = {
        run.name: {"run": run.name}
        | {axis: str(value) if kinds[axis] == text else value for axis, value in run.labels.items()}
        for run in runs
    }
    folder.mkdir(parents=True, exist_ok=True)
    schema = pyarrow.schema(kinds | {"stage": text, "step": whole, "metric": text, "value": number})
    with (
        files.atomic_path(folder / "metrics.parquet") as temporary,
        parquet.ParquetWriter(temporary, schema, compression="zstd") as writer,
    ):
        for run in runs:
            rows = [labels[run.name] | row for row in _metric_rows(run)]
            writer.write_table(pyarrow.Table.from_pylist(rows, schema))
    names = [*(measure.name for measure in experiment.measures if not measure.curve), "seconds"]
    schema = pyarrow.schema(kinds | dict.fromkeys(names, number))
    rows = [labels[outcome.run] | {"seconds": outcome.seconds} | outcome.values for outcome in outcomes]
    with files.atomic_path(folder / "runs.parquet") as temporary:
        parquet.write_table(pyarrow.Table.from_pylist(rows, schema), temporary, compression="zstd")


def _metric_rows(run: SweepRun) -> Iterator[dict[str, Any]]:
    for stage, directory in run.directories.items():
        if (directory / METRICS_FILE).is_file():
            for metric, points in all_metrics(directory / METRICS_FILE).items():
                for step, value in points:
                    yield {"stage": stage, "step": step, "metric": metric, "value": value}
