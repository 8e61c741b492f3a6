"""What a mixture comes to: tokens, share and epochs of every source for a budget of tokens, and the largest budget.

A mixture is stated by shares or by epochs, and each view hides something: a share says nothing of how often a small
source is repeated, epochs say nothing of what the model sees most. So both are always shown (ALLaM talk: "epoch vs
percentage of domain"; the paper: "we upsample data to match the mixture rates when needed").
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from allam_jax.data.phases import Phase
from allam_jax.errors import UserError

# Shares as papers print them are rounded; what is further off is a mistake.
_SUM_TOLERANCE = 1e-3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Line:
    """One source of a mixture.

    Attributes:
      name, language, domain, origin: As in the config.
      available: Tokens of one epoch; None where the size is not known.
      share: Of the tokens of the whole run.
      tokens: Of it in the whole run.
      epochs: How often it is gone through; None where the size is not known.
      upsampling: Its share over its share of all that is available: above 1 it is drawn more often than its size would
        have it. None where a size is not known.
      shares: Its share in each phase.
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
      budget: Tokens of the run.
      phases: Name and tokens of each phase that the budget reaches.
      lines: The sources, in the config's order.
    """

    budget: int
    phases: tuple[tuple[str, float], ...]
    lines: tuple[Line, ...]

    def grouped(self, by: Callable[[Line], str]) -> dict[str, float]:
        """Share of the run by a label of the sources, in the order of their first appearance."""
        groups: dict[str, float] = {}
        for line in self.lines:
            groups[by(line)] = groups.get(by(line), 0.0) + line.share
        return groups

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {
            "budget": self.budget,
            "phases": [{"name": name, "tokens": tokens} for name, tokens in self.phases],
            "sources": {line.name: _without_name(line) for line in self.lines},
        }


def plan_mixture(
    sources: Mapping[str, Mapping[str, str]],
    *,
    phases: Sequence[Phase],
    available: Mapping[str, int | None],
    budget: int,
    tokens_per_step: int,
    max_epochs: float = 0.0,
) -> MixturePlan:
    """Works a mixture out.

    Args:
      sources: Name to its labels: `{"language", "domain", "origin"}`.
      phases: From `make_phases`.
      available: Tokens of one epoch of every source; None where not known.
      budget: Tokens of the run.
      tokens_per_step: batch_size * seq_len: turns the steps of phases into tokens.
      max_epochs: Limit for every source; 0: none.

    Raises:
      UserError: A source that is drawn has no tokens, or would be gone through more often than `max_epochs`; the
        message has the largest budget that is possible.
    """
    if budget < 1:
        raise UserError(f"mixture: the budget is {budget} tokens; expected at least 1 (config.mixture.tokens)")
    seen = {name: _seen(phases, name, budget=budget, tokens_per_step=tokens_per_step) for name in sources}
    for name, tokens in seen.items():
        if tokens and available[name] == 0:
            raise UserError(
                f"mixture: source {name} has no tokens, but {tokens / budget:.2%} of the run are to come from it; give "
                f"it documents, or weight 0"
            )
    if max_epochs:
        _check_epochs(
            seen, phases=phases, available=available, budget=budget, tokens_per_step=tokens_per_step, limit=max_epochs
        )
    sizes = [available[name] for name, tokens in seen.items() if tokens]
    total = sum(size for size in sizes if size) if all(size is not None for size in sizes) else None
    reached = _lengths(phases, budget=budget, tokens_per_step=tokens_per_step)
    lines = []
    for name, labels in sources.items():
        size, tokens = available[name], seen[name]
        lines.append(
            Line(
                name=name,
                **{key: labels[key] for key in ("language", "domain", "origin")},
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
    """Tokens of the longest run that goes through a source `max_epochs` times; infinite if it stops being drawn."""
    left = max_epochs * available
    for phase, following in zip(phases, [*phases[1:], None], strict=True):
        share = phase.shares[name]
        start = phase.from_step * tokens_per_step
        length = float("inf") if following is None else (following.from_step - phase.from_step) * tokens_per_step
        if share and share * length > left:
            return start + left / share
        left -= share * length if share else 0.0
    return float("inf")


def check_sum(phases: Sequence[Phase], *, expected: float) -> None:
    """UserError unless the weights of every phase add up to `expected`, to within a thousandth of it."""
    for phase in phases:
        total = sum(phase.weights.values())
        if abs(total - expected) > _SUM_TOLERANCE * expected:
            name = max(phase.weights, key=lambda source: phase.weights[source])
            corrected = phase.weights[name] + expected - total
            change = f"for instance make {name} {corrected:.6g} instead of {phase.weights[name]:.6g}, or "
            raise UserError(
                f"mixture: the weights of phase {phase.name} add up to {total:.6g}, not {expected:.6g}; "
                f"{change if corrected > 0 else ''}set config.mixture.sum_of_weights=0 to take them as relative"
            )


def _lengths(phases: Sequence[Phase], *, budget: int, tokens_per_step: int) -> list[tuple[Phase, float]]:
    """The phases that a run of `budget` tokens reaches, and how many tokens each has."""
    starts = [phase.from_step * tokens_per_step for phase in phases]
    ends = [*starts[1:], budget]
    return [
        (phase, min(end, budget) - start)
        for phase, start, end in zip(phases, starts, ends, strict=True)
        if start < budget
    ]


def _seen(phases: Sequence[Phase], name: str, *, budget: int, tokens_per_step: int) -> float:
    lengths = _lengths(phases, budget=budget, tokens_per_step=tokens_per_step)
    return sum(phase.shares[name] * tokens for phase, tokens in lengths)


def _check_epochs(
    seen: Mapping[str, float],
    *,
    phases: Sequence[Phase],
    available: Mapping[str, int | None],
    budget: int,
    tokens_per_step: int,
    limit: float,
) -> None:
    budgets = {}
    for name, tokens in seen.items():
        size = available[name]
        if tokens and size is None:
            raise UserError(
                f"mixture: the tokens of source {name} are not known, so config.mixture.max_epochs cannot be checked; "
                f"give data.sources.{name}.path or .tokens"
            )
        if tokens and size:
            budgets[name] = largest_budget(
                phases, name=name, available=size, tokens_per_step=tokens_per_step, max_epochs=limit
            )
    worst = min(budgets, key=lambda name: budgets[name])
    # A budget that is exactly at the limit, but for rounding, is possible.
    if budget > budgets[worst] * (1 + 1e-9):
        epochs = seen[worst] / (available[worst] or 1)
        raise UserError(
            f"mixture: source {worst} would be gone through {epochs:.2f} times, more than config.mixture.max_epochs = "
            f"{limit:g}; the largest budget of this mixture is {int(budgets[worst]):,} tokens, or give {worst} more "
            f"documents or a smaller weight"
        )


def _without_name(line: Line) -> dict[str, Any]:
    values = dataclasses.asdict(line)
    return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items() if key != "name"}
