"""The report of one training run, from its metrics.jsonl."""

import shlex
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from allam_jax.errors import UserError
from allam_jax.evaluation.metric_keys import HELD_OUT, parse_metric_key
from allam_jax.parallel.distributed import barrier, is_main_process
from allam_jax.report import curves as figures
from allam_jax.report.environment import environment
from allam_jax.report.markdown import code, figure, number, section, table, write_report
from allam_jax.report.style import language_name
from allam_jax.training.metrics import read_metrics

_TITLES = {
    "step": "Step",
    "loss": "Loss (nats/token)",
    "grad_norm": "Gradient norm",
    "learning_rate": "Learning rate",
    "tokens_per_second": "Tokens/s (median)",
}
_CURVE_TITLES = {
    "language": "Language",
    "first_step": "First step",
    "first": "Bits/byte",
    "last_step": "Last step",
    "last": "Bits/byte",
    "change": "Change",
}
_SINGLE_TITLES = {"language": "Language", "last_step": "Step", "last": "Bits/byte"}


def evaluation_curves(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[tuple[int, float]]]:
    """Bits per byte of held-out text in the rows of metrics.jsonl: for each language its (step, value)."""
    curves: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        for key, value in row.items():
            match parse_metric_key(key):
                case (suite, language, "bits_per_byte") if suite == HELD_OUT:
                    curves.setdefault(language, []).append((row["step"], value))
    return curves


def reported(workdir: Path, *, started: float, parameters: int) -> dict[str, Any]:
    """Writes the report of the run that this command has finished; every process calls it, one writes.

    Args:
        workdir: of the run.
        started: `time.monotonic()` of its start.
        parameters: how many the model has.

    Returns:
        As `training_result`.
    """
    if is_main_process():
        command = shlex.join(["python", *sys.argv])
        write_run_report(workdir, command=command, seconds=time.monotonic() - started, parameters=parameters)
    barrier("trained")
    return training_result(workdir)


def training_result(workdir: Path) -> dict[str, Any]:
    """What a training task returns, from its metrics.jsonl.

    Returns:
        step and loss (of the last update); bits_per_byte (of held-out text: one `{"step", LANGUAGE: value, ...}` for
        each evaluation); evaluations (the last value of every `eval/SUITE/NAME/METRIC`); tokens_per_second (the median
        over rows, each the mean of up to 20 steps; JAX returns early from single steps, whose times say little).
    """
    rows = read_metrics(Path(workdir) / "metrics.jsonl")
    training = [row for row in rows if "loss" in row]
    if not training:
        raise UserError(
            f"{workdir}/metrics.jsonl: has no row of training, so there is nothing to report; the run itself is in its "
            "checkpoints"
        )
    by_step: dict[int, dict[str, float]] = {}
    for language, points in evaluation_curves(rows).items():
        for step, value in points:
            by_step.setdefault(step, {"step": step})[language] = value
    return {
        "step": training[-1]["step"],
        "loss": training[-1]["loss"],
        "bits_per_byte": [by_step[step] for step in sorted(by_step)],
        "evaluations": {key: value for row in rows for key, value in row.items() if parse_metric_key(key)},
        "tokens_per_second": _median(training, "tokens_per_second"),
    }


def write_run_report(workdir: Path, *, command: str, seconds: float, parameters: int) -> Path:
    """Writes `report.md` and `figures/*.png` of a training run from its `metrics.jsonl`; for one process to call.

    Args:
        workdir: of the run.
        command: the command line that produced the run.
        seconds: wall-clock time of the run.
        parameters: how many the model has.

    Returns:
        The path of the report.

    Raises:
        UserError: `metrics.jsonl` is missing or damaged.
    """
    workdir = Path(workdir)
    report = workdir / "report.md"
    rows = read_metrics(workdir / "metrics.jsonl")
    training = [row for row in rows if "loss" in row]
    curves = evaluation_curves(rows)
    sections = [
        section("Command", code(command, language="sh")),
        section("Run", table([{"what": "Parameters", "value": number(parameters)}], {"what": "", "value": ""})),
    ]
    if training:
        curves_path = workdir / "figures" / "training.png"
        figures.training_curves({"training": training}, curves_path)
        last = dict(training[-1]) | {"tokens_per_second": _median(training, "tokens_per_second")}
        sections.append(
            section(
                "Training",
                table([last], _TITLES),
                figure(curves_path, caption="Loss, gradient norm and learning rate over the steps.", report=report),
            )
        )
    if curves:
        rows_of_curves = [_first_and_last(language, points) for language, points in curves.items()]
        if max(map(len, curves.values())) == 1:  # a single evaluation has no curve and no change
            sections.append(section("Bits per byte", table(rows_of_curves, _SINGLE_TITLES)))
        else:
            curves_path = workdir / "figures" / "bits_per_byte.png"
            figures.bits_per_byte_curves({"training": curves}, base={}, path=curves_path)
            shown = figure(curves_path, caption="Bits per byte of held-out text, by language.", report=report)
            sections.append(section("Bits per byte", table(rows_of_curves, _CURVE_TITLES), shown))
    sections.append(section("Environment", environment(seconds=seconds)))
    write_report(report, title="Training run", sections=sections)
    return report


def _first_and_last(language: str, points: Sequence[tuple[int, float]]) -> dict[str, Any]:
    (first_step, first), (last_step, last) = points[0], points[-1]
    change = f"{100 * (last / first - 1):+.1f} %"
    return dict(zip(_CURVE_TITLES, (language_name(language), first_step, first, last_step, last, change), strict=True))


def _median(rows: Sequence[Mapping[str, Any]], key: str) -> float | None:
    values = [row[key] for row in rows if row.get(key) is not None]
    return statistics.median(values) if values else None
