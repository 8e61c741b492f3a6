"""Reports in Markdown: building blocks, and the report of one training run."""

import importlib.metadata
import math
import os
import platform
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from allam_jax.evaluation import figures
from allam_jax.files import write_text
from allam_jax.training.metrics import read_metrics

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "sentencepiece")

_TITLES = {
    "step": "Step",
    "loss": "Loss (nats/token)",
    "grad_norm": "Gradient norm",
    "learning_rate": "Learning rate",
    "tokens_per_second": "Tokens/s (median)",
}


def evaluation_curves(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[tuple[int, float]]]:
    """The evaluations among the rows of metrics.jsonl: for each language its (step, bits per byte)."""
    curves: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        for key, value in row.items():
            prefix, _, rest = key.partition("/")
            language, _, metric = rest.partition("/")
            if prefix == "eval" and metric == "bits_per_byte":
                curves.setdefault(language, []).append((row["step"], value))
    return curves


def number(value: Any) -> str:
    """A value as a table shows it: four significant digits or whole thousands; a dash for None."""
    if value is None:
        return "–"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int) or (value.is_integer() and 1000 <= abs(value) < 1e15):
        return f"{value:,.0f}"
    size = abs(float(f"{value:.4g}"))
    if not math.isfinite(value) or size < 1e-3 or size >= 1e9:
        return f"{value:.4g}"
    return f"{value:,.0f}" if size >= 1000 else f"{value:#.4g}"


def table(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str] | Sequence[str]) -> str:
    """A Markdown table with a line for each row.

    Args:
        rows: the values; a missing key shows as a dash.
        columns: keys in order, or a mapping from key to heading.
    """
    headings = dict(columns) if isinstance(columns, Mapping) else {key: key for key in columns}
    keys = list(headings)
    texts = [key for key in keys if any(isinstance(row.get(key), str) for row in rows)]
    lines = [
        _line(headings.values()),
        _line("---" if key in texts else "---:" for key in keys),
        *(_line(number(row.get(key)) for key in keys) for row in rows),
    ]
    return "\n".join(lines)


def section(title: str, *blocks: str, level: int = 2) -> str:
    """A heading and its blocks (paragraphs, tables, figures), with blank lines between."""
    return "\n\n".join((f"{'#' * level} {title}", *(block.strip("\n") for block in blocks)))


def figure(path: Path, *, caption: str, report: Path) -> str:
    """A picture with its caption below; linked relative to the directory of `report`."""
    link = os.path.relpath(path, Path(report).parent).replace(os.sep, "/").replace(" ", "%20")
    return f"![{_plain(caption)}]({link})\n\n*{caption}*"


def code(text: str, *, language: str = "") -> str:
    """A fenced block."""
    return f"```{language}\n{text.rstrip()}\n```"


def environment(*, seconds: float | None = None) -> str:
    """A table of what the numbers were measured with: versions, devices, processes and wall-clock time."""
    facts = environment_facts()
    if seconds is not None:
        facts["Wall-clock time"] = duration(seconds)
    return table([{"what": what, "value": value} for what, value in facts.items()], {"what": "", "value": ""})


def environment_facts() -> dict[str, str]:
    """What numbers are measured with here: versions of packages, devices and host."""
    devices = jax.devices()
    kinds = ", ".join(sorted({device.device_kind for device in devices}))
    processes = _count(jax.process_count(), "process", "processes")
    cores = _count(os.cpu_count() or 1, "CPU core", "CPU cores")
    return {
        "Python": platform.python_version(),
        **{name: version for name in PACKAGES if (version := _version(name))},
        "Devices": f"{len(devices)} × {kinds} ({devices[0].platform}), {processes}",
        "Host": f"{platform.system()} {platform.machine()}, {cores}" + (f" ({name})" if (name := _processor()) else ""),
    }


def duration(seconds: float) -> str:
    """`4.2 s`, `3 min 05 s` or `2 h 07 min`."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def write_report(path: Path, *, title: str, sections: Sequence[str]) -> None:
    """Writes a report of these sections, with its title and the time."""
    written = time.strftime("Written %Y-%m-%d %H:%M UTC.", time.gmtime())
    write_text(path, "\n\n".join((f"# {title}", written, *sections)) + "\n")


def write_run_report(
    workdir: Path, *, command: str, title: str = "Training run", seconds: float | None = None, **facts: Any
) -> Path:
    """Writes `report.md` and `figures/*.png` of a training run from its `metrics.jsonl`; for one process to call.

    Args:
        workdir: where the metrics are and the report goes.
        command: the command line that produced the run.
        title: the heading.
        seconds: wall-clock time of the run.
        facts: further lines of the first table, for instance `parameters=3_200_000`.

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
    summary = [{"what": what.replace("_", " ").capitalize(), "value": number(value)} for what, value in facts.items()]
    sections = [section("Command", code(command, language="sh"))]
    if summary:
        sections.append(section("Run", table(summary, {"what": "", "value": ""})))
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
        curves_path = workdir / "figures" / "bits_per_byte.png"
        figures.bits_per_byte_curves({"training": curves}, base={}, path=curves_path)
        sections.append(
            section(
                "Bits per byte",
                table(
                    [
                        {
                            "language": figures.language_name(language),
                            "first_step": points[0][0],
                            "first": points[0][1],
                            "last_step": points[-1][0],
                            "last": points[-1][1],
                            "change": f"{100 * (points[-1][1] / points[0][1] - 1):+.1f} %",
                        }
                        for language, points in curves.items()
                    ],
                    {
                        "language": "Language",
                        "first_step": "First step",
                        "first": "Bits/byte",
                        "last_step": "Last step",
                        "last": "Bits/byte",
                        "change": "Change",
                    },
                ),
                figure(curves_path, caption="Bits per byte of held-out text, by language.", report=report),
            )
        )
    sections.append(section("Environment", environment(seconds=seconds)))
    write_report(report, title=title, sections=sections)
    return report


def _line(cells) -> str:
    return "| " + " | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def _median(rows: Sequence[Mapping[str, Any]], key: str) -> float | None:
    values = [row[key] for row in rows if row.get(key) is not None]
    return statistics.median(values) if values else None


def _count(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"


def _plain(text: str) -> str:
    return text.replace("[", "(").replace("]", ")").replace("\n", " ")


def _processor() -> str:
    """The name of the processor, where Linux tells it."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
