"""Task `suite_curves`: scores of suites over a training run, from a `harness` stage for each of its checkpoints."""

from pathlib import Path
from typing import Any

from allam_jax import files
from allam_jax.config import require
from allam_jax.errors import UserError
from allam_jax.report import curves
from allam_jax.report.markdown import figure, section, table, write_report
from allam_jax.settings import Settings
from allam_jax.training.metrics import METRICS_FILE, read_metrics

_POINTS = "step_"  # begins the names of the stages


def run(config: Settings, workdir: Path) -> dict[str, Any]:
    """Writes `curves.json`, `curves.md` and its figure; returns the last scores."""
    options = config.suite_curves
    require(options.stages, key="suite_curves.stages", hint="name a harness stage for each checkpoint")
    scores: dict[str, list[tuple[int, float, float, float]]] = {}
    chance: dict[str, float] = {}
    for name, directory in options.stages.items():
        if not name.removeprefix(_POINTS).isdigit():
            raise UserError(f"config.suite_curves.stages.{name}: expected a name like {_POINTS}1000")
        step = int(name.removeprefix(_POINTS))
        found = files.read_json(Path(directory) / "harness.json", keys={"choices": dict})
        for suite, values in found["choices"].items():
            scores.setdefault(suite, []).append((step, values["accuracy"], values["low"], values["high"]))
            chance[suite] = values["chance"]
    metrics = Path(options.run) / METRICS_FILE if options.run else None
    loss = read_metrics(metrics) if metrics is not None and metrics.exists() else []
    path = workdir / "curves.png"
    curves.suite_curves(scores, chance=chance, loss=loss, path=path)
    files.write_json(workdir / "curves.json", {"scores": scores, "chance": chance})
    report = workdir / "curves.md"
    rows = [
        {"step": points[0], "suite": suite, "accuracy": points[1], "low": points[2], "high": points[3]}
        for suite, all_ in scores.items()
        for points in sorted(all_)
    ]
    drawn = figure(path, caption="Accuracy of the suites over training, with 95 % intervals.", report=report)
    write_report(report, title="Suites over training", sections=[drawn, section("Scores", table(rows))])
    return {suite: max(points)[1] for suite, points in scores.items()}
