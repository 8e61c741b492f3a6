"""Task `suite_curves`: scores of suites over a training run, from a `harness` stage for each of its checkpoints."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from allam_jax import files
from allam_jax.errors import UserError
from allam_jax.evaluation.metric_keys import SUITES, parse_metric_key
from allam_jax.report import curves
from allam_jax.report.markdown import figure, section, table, write_report
from allam_jax.settings import Settings
from allam_jax.training.metrics import METRICS_FILE, read_metrics

_POINTS = "step_"  # begins the names of the stages


def run(config: Settings, workdir: Path) -> dict[str, Any]:
    """Writes `curves.json`, `curves.md` and its figure; returns the last scores."""
    options = config.suite_curves
    metrics = Path(options.run) / METRICS_FILE if options.run else None
    rows = read_metrics(metrics) if metrics is not None and metrics.exists() else []
    points = list(_of_stages(options.stages)) or list(_of_run(rows))
    if not points:
        raise UserError("config.suite_curves: name a harness stage for each checkpoint, or a run with suite_eval")
    scores: dict[str, list[tuple[int, float, float, float]]] = {}
    for step, suite, of in points:
        scores.setdefault(suite, []).append((step, of["accuracy"], of["low"], of["high"]))
    chance = {suite: of["chance"] for _, suite, of in points}
    path = workdir / "curves.png"
    curves.suite_curves(scores, chance=chance, loss=rows, path=path)
    files.write_json(workdir / "curves.json", {"scores": scores, "chance": chance})
    report = workdir / "curves.md"
    listed = [
        dict(zip(("step", "accuracy", "low", "high"), point, strict=True)) | {"suite": suite}
        for suite, all_ in scores.items()
        for point in sorted(all_)
    ]
    columns = ("step", "suite", "accuracy", "low", "high")
    drawn = figure(path, caption="Accuracy of the suites over training, with 95 % intervals.", report=report)
    write_report(report, title="Suites over training", sections=[drawn, section("Scores", table(listed, columns))])
    return {suite: max(all_)[1] for suite, all_ in scores.items()}


def _of_stages(stages: Mapping[str, str]) -> Iterator[tuple[int, str, Mapping[str, float]]]:
    """Step, suite and its scores, from the harness stage of each checkpoint."""
    for name, directory in stages.items():
        if not name.removeprefix(_POINTS).isdigit():
            raise UserError(f"config.suite_curves.stages.{name}: expected a name like {_POINTS}1000")
        found = files.read_json(Path(directory) / "harness.json", keys={"choices": dict})
        for suite, scores in found["choices"].items():
            yield int(name.removeprefix(_POINTS)), suite, scores


def _of_run(rows: Sequence[Mapping[str, Any]]) -> Iterator[tuple[int, str, Mapping[str, float]]]:
    """The same from what a training run has logged."""
    for row in rows:
        found: dict[str, dict[str, float]] = {}
        for key, value in row.items():
            parsed = parse_metric_key(key)
            if parsed is not None and parsed[0] == SUITES:
                found.setdefault(parsed[1], {})[parsed[2]] = value
        yield from ((row["step"], suite, scores) for suite, scores in found.items() if "low" in scores)
