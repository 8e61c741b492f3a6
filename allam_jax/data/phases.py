"""Phases: mixtures that follow one another in a run, each from its step until the next phase begins.

Mid-training, for example, is a second phase with more of the best documents. The step alone determines the phase, so a
resumed run changes phase at the same step as the original one.
"""

import bisect
import dataclasses
from collections.abc import Mapping, Sequence

from allam_jax.data.interleave import check_weights
from allam_jax.data.settings import PhaseSettings
from allam_jax.errors import UserError, nearest

FIRST = "start"  # name of the phase with the sources' own weights


@dataclasses.dataclass(frozen=True, kw_only=True)
class Phase:
    """A mixture and the step at which it begins.

    Attributes:
        name: in the config; `start` for the first phase.
        from_step: number of updates before it: its first batch is that of update `from_step + 1`.
        weights: relative share of tokens of every source, in the config's order; a source with 0 is not drawn.
    """

    name: str
    from_step: int
    weights: dict[str, float]

    @property
    def shares(self) -> dict[str, float]:
        """The weights divided by their sum."""
        total = sum(self.weights.values())
        return {name: weight / total for name, weight in self.weights.items()}


def make_phases(weights: Mapping[str, float], later: Mapping[str, PhaseSettings]) -> tuple[Phase, ...]:
    """The phases of a run, in the order of their steps; the first has these `weights` of all sources.

    UserError for no weights or bad ones, an unknown source, or two phases at one step.
    """
    check_weights(weights)
    phases = [Phase(name=FIRST, from_step=0, weights=dict(weights))]
    for name, phase in later.items():
        for source in phase.weights:
            if source not in weights:
                raise UserError(f"data.phases.{name}: unknown source {source!r}; {nearest(source, weights)}")
        complete = {source: float(phase.weights.get(source, 0.0)) for source in weights}
        try:
            check_weights(complete)
        except UserError as error:
            raise UserError(f"data.phases.{name}: {str(error).removeprefix('data: ')}") from None
        phases.append(Phase(name=name, from_step=phase.from_step, weights=complete))
    phases.sort(key=lambda phase: phase.from_step)
    for before, after in zip(phases, phases[1:], strict=False):
        if before.from_step == after.from_step:
            raise UserError(
                f"data.phases: {before.name} and {after.name} both begin at step {after.from_step}; change one of them"
            )
    return tuple(phases)


def phase_at(phases: Sequence[Phase], step: int) -> int:
    """The index of the phase of the batch that follows `step` updates."""
    return bisect.bisect_right([phase.from_step for phase in phases], step) - 1
