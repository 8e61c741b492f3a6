"""Does the paper's claim hold here? Arms compared seed by seed, with a confidence interval of the difference."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from allam_jax.ablation.outcomes import Outcome, by_seed, selected
from allam_jax.ablation.vary import SEED
from allam_jax.errors import UserError

HOLDS, DOES_NOT_HOLD, INCONCLUSIVE = "holds", "does not hold", "inconclusive"
CONFIDENCE = 0.95

Labels = Mapping[str, Any]
Rival = Labels | float  # an arm, or a number


@dataclasses.dataclass(frozen=True, kw_only=True)
class Claim:
    """`measure` of the arm `of` is lower (higher, equal) than that of every arm in `than`, or than a number.

    Runs are paired by seed. With the difference d = of - than, and its 95 % interval by Student's t over the seeds:
    "lower" holds if the interval lies below -margin, and does not hold if it lies above; "higher" is the mirror image;
    "equal" holds if it lies within +-margin, and does not hold if it lies outside. Anything else is inconclusive.
    Against several arms it must hold for each, and does not hold if it fails for one.

    Attributes:
        text: the claim in words.
        measure: of one number.
        of: axis -> setting, which picks one arm (any seed).
        than: the same for the arm, or the arms, to compare with; or a number, for instance 0 for a difference that the
            measure itself takes.
        expect: lower, higher or equal.
        margin: the smallest difference that counts, in the measure's unit.
    """

    text: str
    measure: str
    of: Labels
    than: Rival | tuple[Labels, ...]
    expect: Literal["lower", "higher", "equal"] = "lower"
    margin: float = 0.0

    @property
    def what(self) -> str:
        """For messages."""
        return f"claim {self.text!r}"

    @property
    def measure_names(self) -> tuple[str, ...]:
        """The measures it reads."""
        return (self.measure,)

    @property
    def axis_names(self) -> tuple[str, ...]:
        """The axes it selects by."""
        return tuple(dict.fromkeys(axis for labels in self._selections for axis in labels))

    @property
    def _rivals(self) -> tuple[Rival, ...]:
        return self.than if isinstance(self.than, tuple) else (self.than,)

    @property
    def _selections(self) -> list[Labels]:
        return [self.of, *(rival for rival in self._rivals if isinstance(rival, Mapping))]

    def check(self, labels_of_runs: Sequence[Labels]) -> None:
        """UserError unless every selection picks exactly one arm of the sweep."""
        for selection in self._selections:
            arms = {
                tuple(sorted((axis, repr(value)) for axis, value in labels.items() if axis != SEED))
                for labels in labels_of_runs
                if selection.items() <= labels.items()
            }
            if len(arms) != 1:
                raise UserError(f"{self.what}: {dict(selection)} picks {len(arms)} arms; expected exactly one")


@dataclasses.dataclass(frozen=True)
class Verdict:
    """How a claim came out.

    Attributes:
        claim: it.
        outcome: holds, does not hold or inconclusive.
        effect: mean difference of - than, in the measure's unit; against several arms, that to the one which decided.
        spread: sample standard deviation of the difference over seeds.
        interval: 95 % of the effect, (low, high).
        seeds: that both arms have.
        than: the labels of the arm that decided, or the number.
    """

    claim: Claim
    outcome: str
    effect: float
    spread: float
    interval: tuple[float, float]
    seeds: int
    than: Rival

    def line(self, *, unit: str) -> str:
        """One line: outcome, claim, effect with its spread, interval, seeds."""
        if self.seeds < 2:
            return f"**{self.outcome}**: {self.claim.text} ({self.seeds} seeds in both arms; at least 2 are needed)"
        low, high = self.interval
        rival = ""
        if not isinstance(self.claim.than, Mapping):
            names = self.than.values() if isinstance(self.than, Mapping) else [f"{self.than:g}"]
            rival = f", against {', '.join(map(str, names))}"
        return (
            f"**{self.outcome}**: {self.claim.text} (difference {self.effect:+.4g} ± {self.spread:.2g}"
            f"{' ' + unit if unit else ''}{rival}; 95 % interval {low:+.4g} to {high:+.4g}; {self.seeds} seeds, paired)"
        )


def judge(claim: Claim, outcomes: Sequence[Outcome]) -> Verdict:
    """The verdict on a claim."""
    verdicts = [_judge_pair(claim, rival, outcomes) for rival in claim._rivals]
    for outcome in (DOES_NOT_HOLD, INCONCLUSIVE, HOLDS):
        of_that = [verdict for verdict in verdicts if verdict.outcome == outcome]
        if of_that:
            sign = {"lower": 1, "higher": -1, "equal": 0}[claim.expect]
            return max(of_that, key=lambda verdict: sign * verdict.effect if sign else abs(verdict.effect))
    raise AssertionError("a claim compares with at least one arm")


def overall(verdicts: Sequence[Verdict]) -> str:
    """Of all claims together: as the worst of them."""
    outcomes = {verdict.outcome for verdict in verdicts}
    return next((outcome for outcome in (DOES_NOT_HOLD, INCONCLUSIVE) if outcome in outcomes), HOLDS)


def confidence_interval(values: np.ndarray) -> tuple[float, float]:
    """The interval of the mean of at least two values by Student's t distribution."""
    from scipy.stats import t  # slow to import

    half = float(t.ppf((1 + CONFIDENCE) / 2, len(values) - 1)) * float(np.std(values, ddof=1)) / math.sqrt(len(values))
    mean = float(np.mean(values))
    return mean - half, mean + half


def _judge_pair(claim: Claim, rival: Rival, outcomes: Sequence[Outcome]) -> Verdict:
    ours = by_seed(selected(outcomes, claim.of), claim.measure)
    theirs = (
        by_seed(selected(outcomes, rival), claim.measure) if isinstance(rival, Mapping) else dict.fromkeys(ours, rival)
    )
    seeds = sorted(ours.keys() & theirs.keys(), key=str)
    differences = np.asarray([ours[seed] - theirs[seed] for seed in seeds], np.float64)
    if len(seeds) < 2:
        effect = float(differences[0]) if len(seeds) else math.nan
        return Verdict(claim, INCONCLUSIVE, effect, math.nan, (math.nan, math.nan), len(seeds), rival)
    low, high = confidence_interval(differences)
    outcome = _outcome(claim, low, high)
    spread = float(np.std(differences, ddof=1))
    return Verdict(claim, outcome, float(np.mean(differences)), spread, (low, high), len(seeds), rival)


def _outcome(claim: Claim, low: float, high: float) -> str:
    margin = claim.margin
    if claim.expect == "equal":
        if -margin <= low and high <= margin:
            return HOLDS
        return DOES_NOT_HOLD if low > margin or high < -margin else INCONCLUSIVE
    if claim.expect == "higher":
        low, high = -high, -low
    if high < -margin:
        return HOLDS
    return DOES_NOT_HOLD if low > -margin else INCONCLUSIVE
