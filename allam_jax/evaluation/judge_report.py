"""The report of a judge: ratings by model, turn and category, or comparisons; what is missing; figures."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from allam_jax.report.markdown import figure, section, table, write_report
from allam_jax.report.style import COLOURS, MARKERS, STYLE, label, save_figure, subplots


def write(path: Path, found: Mapping[str, Any], *, title: str) -> None:
    """Writes the report of `tasks/judge.py`'s result, with figures beside it."""
    sections = []
    if found["mode"] == "single":
        models = {name: scores for name, scores in found["scores"].items() if scores["rating"] is not None}
        rows = [
            {"model": name, "rating": scores["rating"], "95 %": _span(scores), **scores["turns"]}
            | {"judgments": scores["judgments"], "missing": _counts(scores["missing"])}
            for name, scores in found["scores"].items()
        ]
        blocks = [table(rows)]
        if models:
            bars, radar = path.with_name("ratings.png"), path.with_name("categories.png")
            _draw_bars(bars, models)
            _draw_radar(radar, models)
            blocks += [
                figure(bars, caption="Mean rating of each model, with 95 % intervals.", report=path),
                table([{"model": name, **scores["categories"]} for name, scores in models.items()]),
                figure(radar, caption="Mean rating by category.", report=path),
            ]
        sections.append(section("Ratings", *blocks))
    else:
        scores = found["scores"]
        rows = [{"models": pair, **values} for pair, values in scores["pairs"].items()]
        bias = {key: scores[key] for key in ("games", "judged", "consistent", "first_share")}
        explained = "Points are those of the model named first: 1 for a win in both orders, ½ for a tie."
        sections.append(section("Comparisons", explained, table(rows)))
        sections.append(section("Position bias", table([bias | {"missing": _counts(scores["missing"])}])))
    if found["agreement"]:
        sections.append(section("Agreement with the other judge", table([found["agreement"]])))
    sections.append(section("Cost", table([found["cost"]])))
    write_report(path, title=title, sections=sections)


def _span(scores: Mapping[str, Any]) -> str:
    return "–" if scores["low"] is None else f"{scores['low']:.2f}–{scores['high']:.2f}"


def _counts(missing: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in missing.items()) or "none"


def _draw_bars(path: Path, models: Mapping[str, Mapping[str, Any]]) -> None:
    from matplotlib import rc_context

    with rc_context(STYLE):
        drawing, axes = subplots(rows=1, columns=1, size=(1.5 + 0.9 * len(models), 3.2), heights=[1])
        ax = axes[0, 0]
        for place, scores in enumerate(models.values()):
            ax.bar(place, scores["rating"], color=COLOURS[place % len(COLOURS)], width=0.6)
            ax.plot([place, place], [scores["low"], scores["high"]], color="black")
        ax.set_xticks(range(len(models)), [label(name) for name in models], rotation=30, ha="right")
        ax.set_ylim(0, 10)
        ax.set_ylabel("Rating (1 to 10)")
        save_figure(drawing, path)


def _draw_radar(path: Path, models: Mapping[str, Mapping[str, Any]]) -> None:
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(name for scores in models.values() for name in scores["categories"]))
    angles = [2 * math.pi * number / len(names) for number in range(len(names))]
    with rc_context(STYLE):
        drawing = Figure(figsize=(5, 5), layout="constrained")
        ax = drawing.add_subplot(projection="polar")
        for number, (model, scores) in enumerate(models.items()):
            values = [scores["categories"].get(name) or math.nan for name in names]
            colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
            ax.plot([*angles, *angles[:1]], [*values, *values[:1]], label=label(model), color=colour, marker=marker)
        ax.set_xticks(angles, [label(name) or "–" for name in names])
        ax.set_ylim(0, 10)
        drawing.legend(loc="outside lower center", ncols=3, frameon=False)
        save_figure(drawing, path)
