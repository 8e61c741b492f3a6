"""The plan of a mixture: tokens, share and epochs of every source for a budget of tokens, and the largest budget.

A mixture is stated by shares or by epochs. Shares do not show how often a small source is repeated, and epochs do not
show what the model sees most, so a plan has both (ALLaM talk: "epoch vs percentage of domain"; the paper: "we upsample
data to match the mixture rates when needed").
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from allam_jax.data.phases import Phase
from allam_jax.data.settings import SourceSettings
from allam_jax.errors import UserError

_SUM_TOLERANCE = 1e-3  # papers print rounded shares; a larger deviation is a mistake


@dataclasses.dataclass(frozen=True, kw_only=True)
class Line:
    """One source of a mixture.

    Attributes:
        name, language, domain, origin: as in the config.
        available: tokens of one epoch; None if unknown.
        share: share of the tokens of the whole run.
        tokens: tokens of this source in the whole run.
        epochs: number of times that the source is used; None if its size is unknown.
        upsampling: its share of the run divided by its share of all available tokens, above 1 for a source that is
            drawn more often than its size suggests; None if a size is unknown.
        shares: its share in each phase.
    """

    name: str
    language: str
    domain: str
    origin: str
    available: int | None
    share: float
    tokens: float
    epochs: float | None
    upsampling: float | None
    shares: tuple[float, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class MixturePlan:
    """A mixture for a budget.

    Attributes:
        budget: tokens of the run.
        phases: (name, tokens) of each phase that the budget reaches.
        lines: the sources, in the config's order.
    """

    budget: int
    phases: tuple[tuple[str, float], ...]
    lines: tuple[Line, ...]

    def grouped(self, by: Callable[[Line], str]) -> dict[str, float]:
        """Label -> share of the run, for a label of the sources, in the order of first appearance."""
        groups: dict[str, float] = {}
        for line in self.lines:
            groups[by(line)] = groups.get(by(line), 0.0) + line.share
        return groups

    def to_dict(self) -> dict[str, Any]:
        """The plan as JSON values."""
        return {
            "budget": self.budget,
            "phases": [{"name": name, "tokens": tokens} for name, tokens in self.phases],
            "sources": {line.name: {k: v for k, v in vars(line).items() if k != "name"} for line in self.lines},
        }


def plan_mixture(
    sources: Mapping[str, SourceSettings],
    *,
    phases: Sequence[Phase],
    available: Mapping[str, int | None],
    budget: int,
    tokens_per_step: int,
    max_epochs: float = 0.0,
) -> MixturePlan:
    """The plan of a mixture for a `budget` of tokens, given the tokens of one epoch of each source (None if unknown).

    `tokens_per_step` is batch_size * seq_len, which turns the steps of phases into tokens. UserError if a source that
    is drawn has no tokens, or would be used more than `max_epochs` times (0: no limit); the message has the largest
    possible budget.
    """
    reached = _lengths(phases, budget=budget, tokens_per_step=tokens_per_step)
    seen = {name: sum(phase.shares[name] * tokens for phase, tokens in reached) for name in sources}
    drawn = [name for name, tokens in seen.items() if tokens]
    for name in drawn:
        if available[name] == 0:
            raise UserError(
                f"mixture: source {name} has no tokens, but {seen[name] / budget:.2%} of the run must come from it; "
                f"give it documents, or weight 0"
            )
        if max_epochs and available[name] is None:
            raise UserError(
                f"mixture: the tokens of source {name} are not known, so config.mixture.max_epochs cannot be checked; "
                f"set data.sources.{name}.path or .tokens"
            )
    sizes = {name: size for name in drawn if (size := available[name]) is not None}
    if max_epochs:
        budgets = {
            name: largest_budget(
                phases, name=name, available=size, tokens_per_step=tokens_per_step, max_epochs=max_epochs
            )
            for name, size in sizes.items()
        }
        worst = min(budgets, key=budgets.__getitem__)
        if budget > budgets[worst] * (1 + 1e-9):  # a budget at the limit is accepted in spite of rounding
            raise UserError(
                f"mixture: source {worst} would be used {seen[worst] / sizes[worst]:.2f} times, more than "
                f"config.mixture.max_epochs = {max_epochs:g}; the largest budget of this mixture is "
                f"{int(budgets[worst]):,} tokens, or give {worst} more documents or a smaller weight"
            )
    total = sum(sizes.values()) if len(sizes) == len(drawn) else None
    lines = []
    for name, source in sources.items():
        size, tokens = available[name], seen[name]
        lines.append(
            Line(
                name=name,
                language=source.language,
                domain=source.domain,
                origin=source.origin,
                available=size,
                share=tokens / budget,
                tokens=tokens,
                epochs=tokens / size if size else None,
                upsampling=(tokens / budget) / (size / total) if size and total else None,
                shares=tuple(phase.shares[name] for phase, _ in reached),
            )
        )
    return MixturePlan(
        budget=budget, phases=tuple((phase.name, tokens) for phase, tokens in reached), lines=tuple(lines)
    )


def largest_budget(
    phases: Sequence[Phase], *, name: str, available: int, tokens_per_step: int, max_epochs: float
) -> float:
    """Tokens of the longest run that uses a source at most `max_epochs` times; infinite if a phase ends its use."""
    left = max_epochs * available
    for phase, length in _lengths(phases, budget=math.inf, tokens_per_step=tokens_per_step):
        share = phase.shares[name]
        if share and share * length > left:
            return phase.from_step * tokens_per_step + left / share
        left -= share * length if share else 0.0
    return math.inf


def check_sum(phases: Sequence[Phase], *, expected: float) -> None:
    """Raises UserError unless the weights of every phase add up to `expected`, to within a thousandth."""
    for phase in phases:
        total = sum(phase.weights.values())
        if abs(total - expected) > _SUM_TOLERANCE * expected:
            name = max(phase.weights, key=lambda source: phase.weights[source])
            corrected = phase.weights[name] + expected - total
            change = f"for instance make {name} {corrected:.6g} instead of {phase.weights[name]:.6g}, or "
            raise UserError(
                f"mixture: the weights of phase {phase.name} add up to {total:.6g}, not {expected:.6g}; "
                f"{change if corrected > 0 else ''}set config.mixture.sum_of_weights=0 to use them as relative weights"
            )


def _lengths(phases: Sequence[Phase], *, budget: float, tokens_per_step: int) -> list[tuple[Phase, float]]:
    """The phases that a run of `budget` tokens reaches, with the number of tokens in each."""
    starts = [phase.from_step * tokens_per_step for phase in phases]
    ends = [*starts[1:], budget]
    return [
        (phase, min(end, budget) - start)
        for phase, start, end in zip(phases, starts, ends, strict=True)
        if start < budget
    ]
