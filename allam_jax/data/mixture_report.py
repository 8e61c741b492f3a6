"""A planned mixture as a page of tables and as a figure."""

from collections.abc import Callable
from pathlib import Path

from allam_jax.data.mixture_plan import Line, MixturePlan
from allam_jax.report import style
from allam_jax.report.markdown import section, table


def mixture_page(plan: MixturePlan) -> str:
    """The page in Markdown: a table of the sources, then tables of the shares by label."""
    several = len(plan.phases) > 1
    labels = [key for key in ("language", "domain", "origin") if any(getattr(line, key) for line in plan.lines)]
    columns = {"name": "Source", **{key: key.capitalize() for key in labels}, "available": "Tokens, one epoch"}
    if several:
        columns |= {f"phase{i}": name for i, (name, _) in enumerate(plan.phases)}
    columns |= {"share": "Share", "tokens": "Tokens, run", "epochs": "Epochs", "upsampling": "Upsampling"}
    rows = [_row(line, labels=labels) for line in plan.lines]
    rows.append({"name": "all", "share": _percent(sum(line.share for line in plan.lines)), "tokens": _big(plan.budget)})
    blocks = [table(rows, columns)]
    if several:
        lengths = ", ".join(f"{name} {_big(tokens)}" for name, tokens in plan.phases)
        blocks.append(f"Tokens of the phases: {lengths}. The column of a phase has the sources' shares in it.")
    for title, by in _groups(labels).items():
        groups = [{"what": name, "share": _percent(share)} for name, share in plan.grouped(by).items()]
        blocks.append(table(groups, {"what": title, "share": "Share"}))
    unknown = [line.name for line in plan.lines if line.available is None and line.tokens]
    if unknown:
        which = "any source" if len(unknown) == sum(line.tokens > 0 for line in plan.lines) else ", ".join(unknown)
        blocks.append(
            f"The size of {which} is not known. Set `path` or `tokens` in `config.data.sources` to see the epochs."
        )
    return section(f"Mixture of {plan.budget:,} tokens", *blocks, level=1) + "\n"


def draw_mixture(plan: MixturePlan, path: Path) -> None:
    """Writes a PNG with the share and (where a size is known) the epochs of every source.

    Each language and origin has a colour.
    """
    import matplotlib

    groups = list(dict.fromkeys(_language_and_origin(line) for line in plan.lines))
    colours = {group: style.COLOURS[index % len(style.COLOURS)] for index, group in enumerate(groups)}
    panels = [("share", 100, "Share (%)")]
    if any(line.epochs is not None for line in plan.lines):
        panels.append(("epochs", 1, "Epochs"))
    with matplotlib.rc_context(style.STYLE):
        size = (7.2, 1.4 + 0.26 * len(plan.lines))
        figure, axes = style.subplots(rows=1, columns=len(panels), size=size, heights=(1,))
        for ax, (key, scale, label) in zip(axes[0], panels, strict=True):
            for group in groups:
                mine = [(i, line) for i, line in enumerate(plan.lines) if _language_and_origin(line) == group]
                values = [(getattr(line, key) or 0) * scale for _, line in mine]
                bars = ax.barh([i for i, _ in mine], values, color=colours[group], label=group or "sources")
                ax.bar_label(bars, [_figure_label(getattr(line, key), scale) for _, line in mine], padding=2, size=8)
            ax.set_yticks(range(len(plan.lines)), [line.name for line in plan.lines])
            ax.invert_yaxis()
            ax.margins(x=0.18)
            ax.set_xlim(left=0)
            ax.set_xlabel(label)
            ax.grid(axis="y", visible=False)
        for ax in axes[0, 1:]:
            ax.tick_params(labelleft=False)
        style.legend(figure, axes[0, 0], columns=4, title="Language, origin")
        style.save_figure(figure, path)


def _row(line: Line, *, labels: list[str]) -> dict[str, str]:
    values = {key: getattr(line, key) or "–" for key in labels}
    phases = {f"phase{index}": _percent(share) for index, share in enumerate(line.shares)}
    return {
        "name": line.name,
        **values,
        **phases,
        "available": "–" if line.available is None else _big(line.available),
        "share": _percent(line.share),
        "tokens": _big(line.tokens),
        "epochs": "–" if line.epochs is None else f"{line.epochs:.3g}",
        "upsampling": "–" if line.upsampling is None else f"{line.upsampling:.3g}",
    }


def _groups(labels: list[str]) -> dict[str, Callable[[Line], str]]:
    groups: dict[str, Callable[[Line], str]] = {}
    if "language" in labels:
        groups["Language"] = _language_and_origin
    if "domain" in labels:
        groups["Domain"] = lambda line: line.domain or "–"
    return groups


def _language_and_origin(line: Line) -> str:
    return ", ".join(filter(None, (style.language_name(line.language), line.origin)))


def _figure_label(value: float | None, scale: float) -> str:
    return "?" if value is None else f"{value * scale:.3g}"


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"


def _big(tokens: float) -> str:
    """Four digits and a unit, such as `270 B`; all digits below a million."""
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M")):
        if tokens >= size:
            return f"{tokens / size:.4g} {unit}"
    return f"{tokens:,.0f}"
