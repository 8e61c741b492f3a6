"""Results of the arena: ratings with intervals, win rates, results by domain, agreement, and their figures."""

import collections
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from allam_jax.evaluation.ratings import (
    Battle,
    Ratings,
    bradley_terry,
    elo,
    fleiss_kappa,
    interval,
    krippendorff_alpha,
    win_rates,
)
from allam_jax.evaluation.settings import ArenaSettings
from allam_jax.evaluation.votes import AnswerPair, Choice, Rule, Vote
from allam_jax.report.markdown import figure, section, table, write_report
from allam_jax.report.style import COLOURS, STYLE, label, save_figure, subplots


def results(
    pairs: Sequence[AnswerPair], votes: Sequence[Vote], settings: ArenaSettings, *, seed: int
) -> dict[str, Any]:
    """Everything that the votes say, as JSON values. Only decided pairs count for ratings and win rates."""
    rule = Rule(settings.raters, settings.more_raters)
    by_pair: dict[str, dict[str, Choice]] = {pair.id: {} for pair in pairs}
    for vote in votes:
        if vote.pair in by_pair:
            by_pair[vote.pair][vote.rater] = vote.choice
    battles: list[Battle] = []
    domains: dict[str, list[Battle]] = collections.defaultdict(list)
    for pair in pairs:
        outcome = rule.outcome(list(by_pair[pair.id].values()))
        if outcome is not None:
            battles.append(Battle(pair.model_a, pair.model_b, outcome))
            domains[pair.domain].append(battles[-1])
    first = [list(given.values())[: settings.raters] for given in by_pair.values() if len(given) >= settings.raters]
    found: dict[str, Any] = {
        "pairs": len(pairs),
        "decided": len(battles),
        "votes": sum(map(len, by_pair.values())),
        "raters": len({vote.rater for vote in votes}),
        "outcomes": dict(collections.Counter(battle.outcome for battle in battles)),
        "fleiss_kappa": fleiss_kappa(first) if settings.raters > 1 else None,
        "krippendorff_alpha": krippendorff_alpha(list(by_pair.values())),
        "left_share": _left_share(votes),
    }
    if battles:
        rate = {
            "elo": functools.partial(
                elo, k_factor=settings.k_factor, initial=settings.initial, both_bad=settings.both_bad
            ),
            "bradley_terry": functools.partial(bradley_terry, initial=settings.initial),
        }
        drawn = rate | {
            "bradley_terry": functools.partial(rate["bradley_terry"], chance=np.random.default_rng([seed, 1]))
        }
        for name, function in rate.items():
            intervals = interval(battles, drawn[name], samples=settings.bootstrap, seed=seed)
            found[name] = _with_intervals(function(battles), intervals)
        found["win_rates"] = win_rates(battles, both_bad=settings.both_bad)
        found["domains"] = {
            name: {"pairs": len(some), "points": _points_of(some, settings)}
            for name, some in sorted(domains.items())
            if name
        }
    return found


def write(path: Path, found: Mapping[str, Any], *, title: str) -> None:
    """Writes the report with its figures beside it."""
    counted = {key: found[key] for key in ("pairs", "decided", "votes", "raters")}
    agreement = {key: found[key] for key in ("fleiss_kappa", "krippendorff_alpha", "left_share")}
    sections = [section("Votes", table([counted | dict(found["outcomes"])]), table([agreement]))]
    if "elo" in found:
        rows = [
            {"model": model, "Elo": values["rating"], "95 %": _span(values)}
            | {"Bradley-Terry": found["bradley_terry"][model]["rating"], "95 % ": _span(found["bradley_terry"][model])}
            for model, values in sorted(found["elo"].items(), key=lambda item: -item[1]["rating"])
        ]
        ratings, matrix = path.with_name("ratings.png"), path.with_name("win_rates.png")
        _draw_ratings(ratings, found["bradley_terry"])
        _draw_matrix(matrix, found["win_rates"])
        shown = figure(ratings, caption="Bradley-Terry ratings with 95 % intervals.", report=path)
        rates = figure(matrix, caption="Mean points of the model of a row against that of a column.", report=path)
        sections += [section("Ratings", table(rows), shown), section("Win rates", rates)]
    if found.get("domains"):
        rows = [{"domain": name, "pairs": of["pairs"], **of["points"]} for name, of in found["domains"].items()]
        sections.append(section("Domains", "Mean points of each model.", table(rows)))
    write_report(path, title=title, sections=sections)


def _left_share(votes: Sequence[Vote]) -> float | None:
    """How often the answer on the left wins, of votes with a winner: 0.5 without a preference for a side."""
    sides = [vote.choice == vote.left for vote in votes if vote.choice in ("a", "b")]
    return sum(sides) / len(sides) if sides else None


def _with_intervals(ratings: Ratings, intervals: Mapping[str, tuple[float, float]]) -> dict[str, dict[str, float]]:
    return {
        model: {"rating": rating, "low": intervals[model][0], "high": intervals[model][1]}
        for model, rating in ratings.items()
    }


def _points_of(battles: Sequence[Battle], settings: ArenaSettings) -> dict[str, float]:
    """Model -> its mean points in all of these battles."""
    against = win_rates(battles, both_bad=settings.both_bad)
    met = collections.Counter[tuple[str, str]]()
    for battle in battles:
        met.update([(battle.model_a, battle.model_b), (battle.model_b, battle.model_a)])
    return {
        model: sum((rate or 0.0) * met[model, other] for other, rate in rates.items())
        / sum(met[model, other] for other in rates)
        for model, rates in against.items()
    }


def _span(values: Mapping[str, float]) -> str:
    return f"{values['low']:.0f}–{values['high']:.0f}"


def _draw_ratings(path: Path, ratings: Mapping[str, Mapping[str, float]]) -> None:
    from matplotlib import rc_context

    with rc_context(STYLE):
        ordered = sorted(ratings.items(), key=lambda item: item[1]["rating"])
        drawing, axes = subplots(rows=1, columns=1, size=(5.5, 1 + 0.35 * len(ordered)), heights=[1])
        ax = axes[0, 0]
        for place, (_, values) in enumerate(ordered):
            ax.plot([values["low"], values["high"]], [place, place], color=COLOURS[0])
            ax.plot(values["rating"], place, "o", color=COLOURS[0])
        ax.set_yticks(range(len(ordered)), [label(model) for model, _ in ordered])
        ax.set_ylim(-0.5, len(ordered) - 0.5)
        ax.set_xlabel("Rating")
        save_figure(drawing, path)


def _draw_matrix(path: Path, rates: Mapping[str, Mapping[str, float | None]]) -> None:
    from matplotlib import rc_context

    with rc_context(STYLE | {"axes.grid": False}):
        models = list(rates)
        values = np.array([[rates[one].get(other, None) for other in models] for one in models], float)
        size = 2 + 0.7 * len(models)
        drawing, axes = subplots(rows=1, columns=1, size=(size, size), heights=[1])
        ax = axes[0, 0]
        ax.imshow(values, cmap="RdYlBu", vmin=0, vmax=1)
        for (row, column), value in np.ndenumerate(values):
            if np.isfinite(value):
                ax.text(column, row, f"{value:.2f}", ha="center", va="center")
        names = [label(model) for model in models]
        ax.set_xticks(range(len(models)), names, rotation=45, ha="right")
        ax.set_yticks(range(len(models)), names)
        save_figure(drawing, path)
