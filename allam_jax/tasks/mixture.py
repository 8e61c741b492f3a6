"""Task `mixture`: what the sources and phases of a train config come to: tokens, shares and epochs. Nothing is trained.

Works on any train config (`--config.task=mixture`). The workdir holds mixture.json, mixture.md and mixture.png.
"""

import sys
from pathlib import Path
from typing import Any

from absl import logging

from allam_jax.config import require
from allam_jax.data.mixture_plan import check_sum, plan_mixture
from allam_jax.data.mixture_report import draw_mixture, mixture_page
from allam_jax.data.phases import make_phases
from allam_jax.data.sources import open_source, stated_weights, targets_of
from allam_jax.errors import UserError
from allam_jax.files import write_json, write_text
from allam_jax.settings import Settings
from allam_jax.tokenizer.tokenizer import Tokenizer
from allam_jax.training.origin import open_tokenizer

# Stated epochs and budget may differ by the tokens of a step or so, but not by more than this.
_BUDGET_TOLERANCE = 0.01


def run(config: Settings, workdir: Path) -> dict[str, Any]:
    """Plans the mixture, prints a table and returns shares and epochs by source. UserError if it is impossible."""
    sources = require(config.data.sources, key="data.sources", hint="name at least one source")
    available = _available(config)
    weights = stated_weights(sources, targets={name: size or 0 for name, size in available.items()})
    by_epochs = any(source.epochs for source in sources.values())
    all_phases = make_phases(weights, config.data.phases)
    if by_epochs and len(all_phases) > 1:
        raise UserError("config.data.phases: epochs state a whole run; with phases, state the sources by weight")
    if config.mixture.sum_of_weights and not by_epochs:
        check_sum(all_phases, expected=config.mixture.sum_of_weights)
    plan = plan_mixture(
        sources,
        phases=all_phases,
        available=available,
        budget=_budget(config, epochs_add_up_to=round(sum(weights.values())) if by_epochs else 0),
        tokens_per_step=config.data.batch_size * config.data.seq_len,
        max_epochs=config.mixture.max_epochs,
    )
    report = mixture_page(plan)
    draw_mixture(plan, workdir / "mixture.png")
    write_text(workdir / "mixture.md", report)
    write_json(workdir / "mixture.json", plan.to_dict())
    print(report, end="", file=sys.stderr, flush=True)  # standard output has the JSON of the result alone
    return {
        "tokens": plan.budget,
        "shares": {line.name: round(line.share, 6) for line in plan.lines},
        "epochs": {line.name: None if line.epochs is None else round(line.epochs, 4) for line in plan.lines},
    }


def _budget(config: Settings, *, epochs_add_up_to: int) -> int:
    stated = config.mixture.tokens
    if not epochs_add_up_to:
        return stated or config.train.steps * config.data.batch_size * config.data.seq_len
    if stated and abs(stated - epochs_add_up_to) > _BUDGET_TOLERANCE * stated:
        raise UserError(
            f"config.mixture.tokens = {stated:,}: the epochs of data.sources add up to {epochs_add_up_to:,} tokens; "
            f"take that budget, or multiply all epochs by {stated / epochs_add_up_to:.4g}"
        )
    return stated or epochs_add_up_to


def _available(config: Settings) -> dict[str, int | None]:
    """Tokens of one epoch of every source, as given or counted; None where there is neither a number nor a path."""
    tokenizer: Tokenizer | None = None
    sizes: dict[str, int | None] = {}
    for name, settings in config.data.sources.items():
        if settings.tokens or not settings.path:
            sizes[name] = settings.tokens or None
            continue
        if tokenizer is None:
            tokenizer, _ = open_tokenizer(config)
        source = open_source(name, settings, tokenizer=tokenizer.fingerprint)
        sizes[name] = targets_of(source, tokenizer=tokenizer)
        logging.info("%s: %s tokens an epoch", name, f"{sizes[name]:,}")
    return sizes
