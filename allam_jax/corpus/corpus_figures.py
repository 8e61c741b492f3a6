"""Figures of a corpus report: documents dropped by each rule, histograms of tags, sizes of duplicate groups,
domains."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from allam_jax.corpus.corpus_plan import CorpusPlan
from allam_jax.corpus.rules import PARETO
from allam_jax.corpus.tags import TAGS
from allam_jax.corpus.tally import SHARE_BINS, bin_start
from allam_jax.files import child
from allam_jax.report.style import COLOURS, STYLE, count_axis, label, language_name, legend, save_figure, subplots

_COLUMNS = 3
_DOMAINS = 15


def draw_corpus(
    plan: CorpusPlan,
    languages: Mapping[str, Mapping[str, Any]],
    sets: Mapping[str, Mapping[str, Any]],
    groups: Mapping[str, Mapping[int, int]],
    total: Mapping[str, Any],
    *,
    workdir: Path,
) -> dict[str, str]:
    """Draws the figures that there are counts for into `workdir`; returns figure name -> file name.

    The tallies are those of each language, of each language with a set of rules, and (`total`) of all sources. `groups`
    maps a reason to the size of a group of duplicates to the number of such groups.
    """
    import matplotlib

    drawn: dict[str, Any] = {}
    with matplotlib.rc_context(STYLE):
        if any(tally.get("rules") for tally in sets.values()):
            drawn["drops"] = _drops(sets)
        for language, tally in languages.items():
            if tally.get("tags"):
                drawn[f"tags_{language}"] = _tags(plan, language, tally["tags"])
        if any(groups.values()):
            drawn["groups"] = _groups(groups)
        if len([name for name in total.get("domains", {}).get("before", {}) if name]) > 1:
            drawn["domains"] = _domains(total["domains"])
        for name, figure in drawn.items():
            save_figure(figure, child(workdir, f"{name}.png", what="name of a figure"))
    return {name: f"{name}.png" for name in drawn}


def _drops(sets: Mapping[str, Mapping[str, Any]]) -> Any:
    from matplotlib.ticker import MaxNLocator

    rows = [
        (f"{name} ({set_})", 100 * counts.get("fails", 0) / max(tally["read"]["documents"], 1))
        for set_, tally in sets.items()
        for name, counts in sorted(tally.get("rules", {}).items())
    ]
    figure, axes = _panel(height=1 + 0.26 * len(rows))
    axes.barh([label(name) for name, _ in rows][::-1], [share for _, share in rows][::-1], color=COLOURS[0])
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("Documents that fail the rule (%)")
    return figure


def _tags(plan: CorpusPlan, language: str, tags: Mapping[str, Mapping[str, float]]) -> Any:
    from matplotlib.figure import Figure

    rules = [rule for name in plan.sources if plan.language(name) == language for rule in plan.rules(name).values()]
    rows = math.ceil(len(tags) / _COLUMNS)
    figure = Figure(figsize=(9.6, 2.2 * rows), layout="constrained")
    panels = figure.subplots(rows, _COLUMNS, squeeze=False)
    for axes in panels.flat[len(tags) :]:
        axes.set_axis_off()
    for axes, (tag, histogram) in zip(panels.flat, sorted(tags.items()), strict=False):
        share = TAGS[tag].kind == "share"
        numbers = sorted(int(number) for number in histogram if number != "undefined")
        starts = [bin_start(tag, number) for number in numbers]
        widths = [bin_start(tag, number + 1) - start for number, start in zip(numbers, starts, strict=True)]
        axes.bar(starts, [histogram[str(number)] for number in numbers], widths, align="edge", color=COLOURS[0])
        _log_counts(axes, max(histogram[str(number)] for number in numbers) if numbers else 1)
        if share:
            axes.set_xlim(-1 / SHARE_BINS, 1 + 1 / SHARE_BINS)
        else:
            axes.set_xscale("symlog")
            largest = max(starts[-1] + widths[-1] if starts else 0, 2)
            axes.set_xlim(0, largest)
            count_axis(axes.xaxis, most=largest, log=True)
        # The threshold of a Pareto rule is a shape, not a value of the tag.
        for threshold in {rule.threshold for rule in rules if rule.tag == tag and rule.drop != PARETO}:
            axes.axvline(threshold, color=COLOURS[1], linestyle="--")
        axes.set_title(tag, fontsize=7)
    figure.supylabel("Documents", fontsize=8)
    figure.suptitle(f"Tags of {language_name(language)} documents before the rules (dashed lines: thresholds)")
    return figure


def _groups(groups: Mapping[str, Mapping[int, int]]) -> Any:
    figure, axes = _panel(height=3.2)
    for colour, (reason, sizes) in zip(COLOURS, groups.items(), strict=False):
        if sizes:
            ordered = sorted(sizes)
            axes.plot(ordered, [sizes[size] for size in ordered], "o", color=colour, label=reason)
    largest = max(max(sizes, default=2) for sizes in groups.values())
    axes.set_xscale("log")
    axes.set_xlim(1.8, largest * 1.2)
    count_axis(axes.xaxis, most=largest, log=True)
    _log_counts(axes, max(max(sizes.values(), default=1) for sizes in groups.values()))
    axes.set_xlabel("Documents in a group of duplicates")
    axes.set_ylabel("Groups")
    legend(figure, axes, columns=3, title="duplicates found by")
    return figure


def _domains(domains: Mapping[str, Mapping[str, float]]) -> Any:
    before, after = domains["before"], domains.get("after", {})
    named = sorted(filter(None, before), key=lambda name: (-before[name], name))[:_DOMAINS][::-1]
    figure, axes = _panel(height=1 + 0.3 * len(named))
    places = range(len(named))  # two long names may have the same label
    axes.barh(places, [before[name] for name in named], color=COLOURS[5], label="before the pipeline")
    axes.barh(places, [after.get(name, 0) for name in named], height=0.45, color=COLOURS[0], label="after it")
    axes.set_yticks(places, map(label, named))
    count_axis(axes.xaxis, most=before[named[-1]])
    axes.set_xlabel("Documents")
    legend(figure, axes, columns=3)
    return figure


def _log_counts(axes: Any, most: float) -> None:
    axes.set_yscale("log")
    axes.set_ylim(0.7, max(most, 2) * 1.4)
    count_axis(axes.yaxis, most=most, log=True)


def _panel(*, height: float) -> tuple[Any, Any]:
    figure, axes = subplots(rows=1, columns=1, size=(6.4, height), heights=(1,))
    return figure, axes[0, 0]
