"""Mixtures that follow one another in a run: each holds from a step on, until the next one begins.

Mid-training is a second phase: other weights, for instance more of the best documents.
Which phase a row belongs to is a function of the step alone, so a resumed run switches where it would have switched.
"""

import bisect
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from allam_jax.data.interleave import check_weights
from allam_jax.errors import UserError, nearest

FIRST = "start"  # name of the phase that the sources' own weights make


@dataclasses.dataclass(frozen=True, kw_only=True)
class Phase:
    """A mixture and when it begins.

    Attributes:
      name: In the config; `start` for the first one.
      from_step: Updates that have been made when it begins: the batch of update `from_step + 1` is its first.
      weights: Relative share of the tokens of every source, in the config's order; 0 is not drawn.
    """

    name: str
    from_step: int
    weights: dict[str, float]

    @property
    def shares(self) -> dict[str, float]:
        """The weights, divided by their sum."""
        total = sum(self.weights.values())
        return {name: weight / total for name, weight in self.weights.items()}


def make_phases(weights: Mapping[str, float], later: Mapping[str, Mapping[str, Any]]) -> tuple[Phase, ...]:
    """The phases of a run, in the order of their steps.

    Args:
      weights: Of all sources, for the first phase.
      later: Name to `{"from_step": int, "weights": {source: weight}}`; a source that is not named is not drawn.

    Raises:
      UserError: No or bad weights, an unknown source, a step below 1, or two phases at one step.
    """
    check_weights(weights)
    phases = [Phase(name=FIRST, from_step=0, weights=dict(weights))]
    for name, entry in later.items():
        step, given = entry["from_step"], entry["weights"]
        if isinstance(step, bool) or not isinstance(step, int) or step < 1:
            raise UserError(f"data.phases.{name}: from_step is {step!r}; expected the number of a step, 1 or more")
        for source in given:
            if source not in weights:
                raise UserError(f"data.phases.{name}: unknown source {source!r}; {nearest(source, weights)}")
        complete = {source: float(given.get(source, 0.0)) for source in weights}
        try:
            check_weights(complete)
        except UserError as error:
            raise UserError(f"data.phases.{name}: {str(error).removeprefix('data: ')}") from None
        phases.append(Phase(name=name, from_step=step, weights=complete))
    phases.sort(key=lambda phase: phase.from_step)
    for before, after in zip(phases, phases[1:], strict=False):
        if before.from_step == after.from_step:
            raise UserError(
                f"data.phases: {before.name} and {after.name} both begin at step {after.from_step}; give one another"
            )
    return tuple(phases)


def phase_at(phases: Sequence[Phase], step: int) -> int:
    """Index of the phase that the batch after `step` updates belongs to."""
    return bisect.bisect_right([phase.from_step for phase in phases], step) - 1
