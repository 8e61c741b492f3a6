"""What a judge's judgments come to. One without a rating or verdict is counted, never dropped in silence."""

import collections
import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from allam_jax.corpus.model_phrases import begins_as_refusal
from allam_jax.evaluation.mt_bench import rating, verdict

SAMPLES = 1000  # of the bootstrap
NO_ANSWER = "no answer"  # what is missing where the judge has none


@dataclasses.dataclass(frozen=True)
class Judgment:
    """One judgment. `found` is a rating or a verdict; None: there is none, for the reason in `missing`."""

    question: str
    category: str
    turn: int
    models: tuple[str, ...]
    found: float | str | None
    missing: str = ""  # refused, unparsed or no answer


def read_judgments(
    answers: Iterable[Mapping[str, Any]], errors: Iterable[Mapping[str, Any]], *, mode: str
) -> list[Judgment]:
    """Judgments from the rows that the judge has answered, and from those that it has not."""
    read = rating if mode == "single" else verdict
    found = []
    for row in answers:
        text = row["answers"][0]["text"]
        value = read(text)
        found.append(_judgment(row, value, "" if value is not None else why_missing(text)))
    return found + [_judgment(row, None, NO_ANSWER) for row in errors]


def why_missing(text: str) -> str:
    """Why an answer of a judge has no grade: it is refused or unparsed."""
    return "refused" if not text.strip() or begins_as_refusal(text) else "unparsed"


def single_scores(judgments: Sequence[Judgment], *, seed: int) -> dict[str, Any]:
    """Model -> mean rating with its 95 % interval (bootstrap over questions), by turn and by category."""
    result = {}
    for model in dict.fromkeys(judgment.models[0] for judgment in judgments):
        own = [judgment for judgment in judgments if judgment.models[0] == model]
        rated = [judgment for judgment in own if judgment.found is not None]
        low, high = _interval(rated, seed=seed)
        turns = {f"turn {turn}": _mean(j for j in rated if j.turn == turn) for turn in sorted({j.turn for j in own})}
        names = sorted({judgment.category for judgment in own})
        result[model] = {
            "rating": _mean(rated),
            "low": low,
            "high": high,
            "turns": turns,
            "categories": {name: _mean(j for j in rated if j.category == name) for name in names},
            "judgments": len(own),
            "missing": dict(collections.Counter(judgment.missing for judgment in own if judgment.missing)),
        }
    return result


def pairwise_scores(judgments: Sequence[Judgment], *, seed: int) -> dict[str, Any]:
    """What comparisons in both orders come to.

    A model wins a game (a question and turn) if it wins in both orders. All else that both orders have a verdict for is
    a tie, as FastChat counts. `first_share` is how often the answer shown first wins among judgments with a winner: 0.5
    without position bias. `consistent` is the share of games whose two orders agree.
    """
    games: dict[tuple[str, ...], dict[tuple[str, str], Judgment]] = collections.defaultdict(dict)
    for judgment in judgments:
        a, b = judgment.models
        games[(*sorted((a, b)), judgment.question, str(judgment.turn))][a, b] = judgment
    outcomes: dict[tuple[str, str], list[tuple[str, float]]] = collections.defaultdict(list)
    consistent = judged = 0
    for (a, b, question, _), orders in games.items():
        winners = [_winner(orders.get(pair)) for pair in ((a, b), (b, a))]
        if None in winners:
            continue
        judged += 1
        consistent += winners[0] == winners[1]
        points = {a: 1.0, b: 0.0}.get(str(winners[0]), 0.5) if winners[0] == winners[1] else 0.5
        outcomes[a, b].append((question, points))
    pairs = {}
    for (a, b), of_pair in sorted(outcomes.items()):
        values = [value for _, value in of_pair]
        low, high = _interval_of(of_pair, seed=seed)
        counts = {"wins": values.count(1.0), "ties": values.count(0.5), "losses": values.count(0.0)}
        pairs[f"{a} : {b}"] = {**counts, "points": sum(values) / len(values), "low": low, "high": high}
    decided = [judgment.found for judgment in judgments if judgment.found in ("first", "second")]
    return {
        "pairs": pairs,
        "games": len(games),
        "judged": judged,
        "consistent": consistent / judged if judged else None,
        "first_share": decided.count("first") / len(decided) if decided else None,
        "missing": dict(collections.Counter(judgment.missing for judgment in judgments if judgment.missing)),
    }


def agreement(first: Sequence[Judgment], second: Sequence[Judgment]) -> dict[str, Any]:
    """How two judges of the same answers agree: items, the share of equal verdicts, and the correlation of ratings."""
    key = lambda judgment: (judgment.question, judgment.turn, judgment.models)  # noqa: E731
    other = {key(judgment): judgment.found for judgment in second if judgment.found is not None}
    pairs = [(j.found, other[key(j)]) for j in first if j.found is not None and key(j) in other]
    equal = sum(a == b for a, b in pairs) / len(pairs) if pairs else None
    numbers = np.array([pair for pair in pairs if not isinstance(pair[0], str)], float)
    varied = len(numbers) > 1 and bool(np.all(numbers.std(axis=0) > 0))
    correlation = float(np.corrcoef(numbers.T)[0, 1]) if varied else None
    return {"judgments": len(pairs), "equal": equal, "correlation": correlation}


def _judgment(row: Mapping[str, Any], found: float | str | None, missing: str) -> Judgment:
    return Judgment(row["question"], row["category"], row["turn"], tuple(row["models"]), found, missing)


def _winner(judgment: Judgment | None) -> str | None:
    """The model that a judgment prefers, or "tie"; None without a verdict."""
    if judgment is None or judgment.found is None:
        return None
    return {"first": judgment.models[0], "second": judgment.models[1]}.get(str(judgment.found), "tie")


def _mean(judgments: Iterable[Judgment]) -> float | None:
    values = [float(judgment.found) for judgment in judgments if judgment.found is not None]
    return sum(values) / len(values) if values else None


def _interval(judgments: Sequence[Judgment], *, seed: int) -> tuple[float | None, float | None]:
    return _interval_of([(j.question, float(j.found)) for j in judgments if j.found is not None], seed=seed)


def _interval_of(points: Sequence[tuple[str, float]], *, seed: int) -> tuple[float | None, float | None]:
    """95 % interval of the mean; whole questions are drawn, because their turns are not independent."""
    names = sorted({name for name, _ in points})
    if not names:
        return None, None
    place = {name: number for number, name in enumerate(names)}
    sums, counts = np.zeros(len(names)), np.zeros(len(names))
    for name, value in points:
        sums[place[name]] += value
        counts[place[name]] += 1
    drawn = np.random.default_rng(seed).integers(0, len(names), (SAMPLES, len(names)))
    low, high = np.percentile(sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1), [2.5, 97.5])
    return float(low), float(high)
