"""Judges claims: compares arms seed by seed, with a confidence interval of the difference."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from allam_jax.ablation.outcomes import Outcome, by_seed, selected
from allam_jax.ablation.vary import SEED
from allam_jax.errors import UserError

HOLDS, DOES_NOT_HOLD, INCONCLUSIVE = "holds", "does not hold", "inconclusive"
CONFIDENCE, POWER = 0.95, 0.8

Labels = Mapping[str, Any]
Rival = Labels | float  # an arm, or a number


@dataclasses.dataclass(frozen=True, kw_only=True)
class Claim:
    """The claim that `measure` of the arm `of` is lower than (higher than, equal to) that of other arms or a number.

    Runs are paired by seed. The verdict depends on the 95 % interval (Student's t over the seeds) of the difference
    of - than. "lower" holds if the interval lies below -margin, and does not hold if it lies above -margin. "higher" is
    the mirror image. "equal" holds if the interval lies within ±margin, and does not hold if it lies outside. All other
    cases are inconclusive. Against several arms, a claim must hold for each, and one failure decides.

    Attributes:
        text: the claim in words.
        measure: the name of a measure of one number.
        of: axis -> setting; selects one arm with all its seeds.
        than: the same for the arm or arms to compare with, or a number, such as 0 for a measure that is a difference.
        expect: "lower", "higher" or "equal".
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
        """The claim as error messages name it."""
        return f"claim {self.text!r}"

    @property
    def measure_names(self) -> tuple[str, ...]:
        """The measures that the claim reads."""
        return (self.measure,)

    @property
    def axis_names(self) -> tuple[str, ...]:
        """The axes by which the claim selects arms."""
        return tuple(dict.fromkeys(axis for labels in self._selections for axis in labels))

    @property
    def _rivals(self) -> tuple[Rival, ...]:
        return self.than if isinstance(self.than, tuple) else (self.than,)

    @property
    def _selections(self) -> list[Labels]:
        return [self.of, *(rival for rival in self._rivals if isinstance(rival, Mapping))]

    def check(self, labels_of_runs: Sequence[Labels]) -> None:
        """Raises UserError unless every selection matches exactly one arm of the sweep."""
        for selection in self._selections:
            arms = {
                tuple(sorted((axis, repr(value)) for axis, value in labels.items() if axis != SEED))
                for labels in labels_of_runs
                if selection.items() <= labels.items()
            }
            if len(arms) != 1:
                raise UserError(f"{self.what}: {dict(selection)} matches {len(arms)} arms; expected exactly one")


@dataclasses.dataclass(frozen=True)
class Verdict:
    """The verdict on a claim. If the claim names several arms, the figures are those of the arm that decided.

    Attributes:
        claim: the claim.
        outcome: HOLDS, DOES_NOT_HOLD or INCONCLUSIVE.
        effect: the mean difference of - than, in the measure's unit.
        spread: the sample standard deviation of the difference over seeds.
        interval: the 95 % interval (low, high) of the effect.
        smallest: the smallest effect that this many seeds with this spread would have shown; see `smallest_effect`.
        seeds: the number of seeds that both arms have.
        than: the labels of the other arm, or the number.
    """

    claim: Claim
    outcome: str
    effect: float
    spread: float
    interval: tuple[float, float]
    smallest: float
    seeds: int
    than: Rival

    def line(self, *, unit: str) -> str:
        """One line of Markdown: outcome, claim, effect with its spread, interval and number of seeds."""
        if self.seeds < 2:
            return f"**{self.outcome}**: {self.claim.text} ({self.seeds} seeds in both arms; at least 2 are needed)"
        low, high = self.interval
        rival = ""
        if not isinstance(self.claim.than, Mapping):
            names = self.than.values() if isinstance(self.than, Mapping) else [f"{self.than:g}"]
            rival = f", against {', '.join(map(str, names))}"
        return (
            f"**{self.outcome}**: {self.claim.text} (difference {self.effect:+.4g} ± {self.spread:.2g}"
            f"{' ' + unit if unit else ''}{rival}; 95 % interval {low:+.4g} to {high:+.4g}; {self.seeds} seeds, "
            f"paired; smallest effect that {POWER:.0%} of such experiments show: {self.smallest:.2g})"
        )


def judge(claim: Claim, outcomes: Sequence[Outcome]) -> Verdict:
    """The verdict on a claim, from the outcomes of all runs."""
    verdicts = [_judge_pair(claim, rival, outcomes) for rival in claim._rivals]
    for outcome in (DOES_NOT_HOLD, INCONCLUSIVE, HOLDS):
        of_that = [verdict for verdict in verdicts if verdict.outcome == outcome]
        if of_that:
            sign = {"lower": 1, "higher": -1, "equal": 0}[claim.expect]
            return max(of_that, key=lambda verdict: sign * verdict.effect if sign else abs(verdict.effect))
    raise AssertionError("a claim compares with at least one arm")


def overall(verdicts: Sequence[Verdict]) -> str:
    """The outcome of several claims together, which is that of the worst one."""
    outcomes = {verdict.outcome for verdict in verdicts}
    return next((outcome for outcome in (DOES_NOT_HOLD, INCONCLUSIVE) if outcome in outcomes), HOLDS)


def confidence_interval(values: np.ndarray) -> tuple[float, float]:
    """The interval (low, high) of the mean of at least two values, by Student's t distribution."""
    from scipy.stats import t  # slow to import

    half = float(t.ppf((1 + CONFIDENCE) / 2, len(values) - 1)) * float(np.std(values, ddof=1)) / math.sqrt(len(values))
    mean = float(np.mean(values))
    return mean - half, mean + half


def smallest_effect(spread: float, *, seeds: int) -> float:
    """The true difference that lies outside of the interval, on its own side, in 80 % of experiments of this kind.

    That is the power of Student's t test: t of the differences follows the noncentral t distribution, whose
    noncentrality is difference / spread * sqrt(seeds).

    Args:
        spread: the standard deviation of the difference over seeds, taken to be the true one.
        seeds: at least two.
    """
    from scipy.optimize import brentq  # slow to import
    from scipy.stats import nct, t

    border = float(t.ppf((1 + CONFIDENCE) / 2, seeds - 1))
    shift = brentq(lambda shift: nct.sf(border, seeds - 1, shift) - POWER, 0.0, 10 * border)
    return float(shift) * spread / math.sqrt(seeds)


def _judge_pair(claim: Claim, rival: Rival, outcomes: Sequence[Outcome]) -> Verdict:
    ours = by_seed(selected(outcomes, claim.of), claim.measure)
    theirs = (
        by_seed(selected(outcomes, rival), claim.measure) if isinstance(rival, Mapping) else dict.fromkeys(ours, rival)
    )
    seeds = sorted(ours.keys() & theirs.keys(), key=str)
    differences = np.asarray([ours[seed] - theirs[seed] for seed in seeds], np.float64)
    if len(seeds) < 2:
        effect = float(differences[0]) if len(seeds) else math.nan
        return Verdict(claim, INCONCLUSIVE, effect, math.nan, (math.nan, math.nan), math.nan, len(seeds), rival)
    low, high = confidence_interval(differences)
    outcome = _outcome(claim, low, high)
    spread = float(np.std(differences, ddof=1))
    smallest = claim.margin + smallest_effect(spread, seeds=len(seeds))
    return Verdict(claim, outcome, float(np.mean(differences)), spread, (low, high), smallest, len(seeds), rival)


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
