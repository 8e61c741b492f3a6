"""Ratings of models from comparisons of two: Elo, Bradley-Terry, agreement of raters, win rates."""

import collections
import dataclasses
import math
from collections.abc import Callable, Hashable, Mapping, Sequence

import numpy as np

from allam_jax.evaluation.votes import CHOICES, Choice

Ratings = dict[str, float]
SCALE = 400.0  # points of a rating for odds of 10 to 1
_POINTS: Mapping[Choice, tuple[float, float]] = {"a": (1.0, 0.0), "b": (0.0, 1.0), "tie": (0.5, 0.5)}
_ADDED = 0.5  # wins and losses of each model against an average opponent
_PRECISION = 1e-9  # nats
_MOST_STEPS = 200
_NOBODY_WINS = (0.0, 0.0)


@dataclasses.dataclass(frozen=True)
class Battle:
    """One comparison and its outcome."""

    model_a: str
    model_b: str
    outcome: Choice


def elo(battles: Sequence[Battle], *, k_factor: float, initial: float, both_bad: str) -> Ratings:
    """Ratings after all battles, one after the other (Elo 1978).

    Args:
        battles: in the order in which they count.
        k_factor: points that one battle moves at most.
        initial: where all begin.
        both_bad: "default": half a point each, as for a tie; "custom": none for both, so both lose.
    """
    ratings: Ratings = collections.defaultdict(lambda: initial)
    for battle in battles:
        a, b = ratings[battle.model_a], ratings[battle.model_b]
        expected_a = 1 / (1 + 10 ** ((b - a) / SCALE))
        points_a, points_b = _points(battle.outcome, both_bad=both_bad)
        ratings[battle.model_a] = a + k_factor * (points_a - expected_a)
        ratings[battle.model_b] = b + k_factor * (points_b - (1 - expected_a))
    return dict(ratings)


def bradley_terry(battles: Sequence[Battle], *, initial: float, chance: np.random.Generator | None = None) -> Ratings:
    """Strengths (Bradley and Terry 1952) on the scale of Elo, `initial` in the mean.

    Ties and "both bad" are half a win each: the model knows no outcome that both lose. A model that always wins, or
    always loses, has no strength of maximum likelihood. So each has half a win and half a loss more, against an
    opponent of average strength; the strengths are those that are likeliest with them.

    Args:
        battles: in any order.
        initial: the mean of all ratings.
        chance: for samples of an interval: the weights of what was added are drawn too, with the same mean. Otherwise
            all samples of a model that never loses would be alike, and its interval would be a point.
    """
    names = list(dict.fromkeys(name for battle in battles for name in (battle.model_a, battle.model_b)))
    place = {name: number for number, name in enumerate(names)}
    wins_MM = np.zeros((len(names) + 1,) * 2)  # the last is the average opponent
    for battle in battles:
        a, b = place[battle.model_a], place[battle.model_b]
        points_a, points_b = _points(battle.outcome, both_bad="default")
        wins_MM[a, b] += points_a
        wins_MM[b, a] += points_b
    added = np.full((2, len(names)), _ADDED) if chance is None else _ADDED * chance.exponential(size=(2, len(names)))
    wins_MM[:-1, -1], wins_MM[-1, :-1] = added
    points = SCALE / math.log(10) * _likeliest(wins_MM)
    return {name: initial + float(value - points.mean()) for name, value in zip(names, points, strict=True)}


def _likeliest(wins_MM: np.ndarray) -> np.ndarray:
    """The strengths of most likelihood, in nats, of all but the last, whose strength is 0: by Newton's method."""
    games_MM = wins_MM + wins_MM.T
    strengths_M = np.zeros(len(wins_MM))
    # Of log(1 + exp(b - a)) for each win of a over b.
    loss = lambda at: np.sum(wins_MM * np.logaddexp(0, at[None] - at[:, None]))  # noqa: E731
    for _ in range(_MOST_STEPS):
        chance_MM = np.exp(-np.logaddexp(0, strengths_M[None] - strengths_M[:, None]))
        gradient_M = np.sum(wins_MM - games_MM * chance_MM, axis=1)[:-1]
        weight_MM = games_MM * chance_MM * chance_MM.T
        curvature_MM = np.diag(weight_MM.sum(axis=1)) - weight_MM
        step_M = np.append(np.linalg.solve(curvature_MM[:-1, :-1], gradient_M), 0.0)
        now = loss(strengths_M)
        while loss(strengths_M + step_M) > now and np.max(np.abs(step_M)) > _PRECISION:
            step_M = step_M / 2  # far from the best point a whole step can go too far
        strengths_M = strengths_M + step_M
        if np.max(np.abs(step_M)) <= _PRECISION:
            break
    return strengths_M[:-1]


def interval(
    battles: Sequence[Battle], rate: Callable[[Sequence[Battle]], Ratings], *, samples: int, seed: int
) -> dict[str, tuple[float, float]]:
    """Model -> the 95 % interval of its rating, by drawing battles with replacement; their order is kept."""
    chance = np.random.default_rng(seed)
    drawn: dict[str, list[float]] = collections.defaultdict(list)
    for _ in range(samples):
        chosen = np.sort(chance.integers(0, len(battles), len(battles)))
        for model, rating in rate([battles[number] for number in chosen]).items():
            drawn[model].append(rating)
    ends = {model: np.percentile(values, [2.5, 97.5]) for model, values in drawn.items()}
    return {model: (float(low), float(high)) for model, (low, high) in ends.items()}


def win_rates(battles: Sequence[Battle], *, both_bad: str) -> dict[str, dict[str, float | None]]:
    """Model -> other model -> its mean points against it; None where they have not met."""
    points: dict[tuple[str, str], list[float]] = collections.defaultdict(list)
    for battle in battles:
        points_a, points_b = _points(battle.outcome, both_bad=both_bad)
        points[battle.model_a, battle.model_b].append(points_a)
        points[battle.model_b, battle.model_a].append(points_b)
    models = sorted({model for pair in points for model in pair})
    mean = {pair: sum(values) / len(values) for pair, values in points.items()}
    return {one: {other: mean.get((one, other)) for other in models if other != one} for one in models}


def fleiss_kappa(votes: Sequence[Sequence[str]]) -> float | None:
    """Agreement beyond chance of raters who all vote on all items (Fleiss 1971); None where it is not defined.

    `votes` has the same number of votes, two or more, for each item.
    """
    counts = np.array([[list(item).count(choice) for choice in CHOICES] for item in votes], float)
    if not len(counts):
        return None
    raters = counts[0].sum()
    agreement = np.mean((np.sum(counts**2, axis=1) - raters) / (raters * (raters - 1)))
    by_chance = np.sum((counts.sum(axis=0) / counts.sum()) ** 2)
    return None if by_chance == 1 else float((agreement - by_chance) / (1 - by_chance))


def cohen_kappa(first: Sequence[Hashable], second: Sequence[Hashable]) -> float | None:
    """Agreement beyond chance of two raters on the same items (Cohen 1960); None where both said one thing only."""
    counts, other_counts = collections.Counter(first), collections.Counter(second)
    agreement = sum(one == other for one, other in zip(first, second, strict=True)) / len(first)
    by_chance = sum(counts[choice] * other_counts[choice] for choice in counts) / len(first) ** 2
    return None if by_chance == 1 else (agreement - by_chance) / (1 - by_chance)


def krippendorff_alpha(votes: Sequence[Mapping[str, str]]) -> float | None:
    """Agreement beyond chance where not every rater votes on every item (Krippendorff 2011), for names; None without.

    `votes` maps raters to their votes, for each item.
    """
    import evalica
    import pandas

    pairable = [item for item in votes if len(item) > 1]
    if len({choice for item in pairable for choice in item.values()}) < 2:
        return None
    numbers: dict[str, float] = {choice: float(number) for number, choice in enumerate(CHOICES)}
    raters = sorted({rater for item in pairable for rater in item})
    # Codes by rater and item: what a rater did not see is missing.
    frame = pandas.DataFrame(
        {number: [numbers.get(item.get(rater, "")) for rater in raters] for number, item in enumerate(pairable)},
        index=raters,
        dtype=float,
    )
    return float(evalica.alpha(frame, distance="nominal").alpha)


def _points(outcome: Choice, *, both_bad: str) -> tuple[float, float]:
    if outcome == "both_bad":
        return _NOBODY_WINS if both_bad == "custom" else _POINTS["tie"]
    return _POINTS[outcome]
