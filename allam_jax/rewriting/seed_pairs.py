"""Which annotated pairs a worker is trained on, and the conversations that it learns from."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from allam_jax.alignment.review_items import ORIGINAL, PASSED, REWRITE, read_items
from allam_jax.errors import UserError
from allam_jax.files import unit_hash
from allam_jax.rewriting.instructions import Instruction
from allam_jax.rewriting.settings import HIGH_PERPLEXITY, RANDOM

PERPLEXITY = "perplexity"


@dataclasses.dataclass(frozen=True)
class SeedPair:
    """An original, its rewrite, their language, and everything else that is known of them: the provenance."""

    original: str
    rewrite: str
    language: str
    provenance: Mapping[str, Any]

    def conversation(self, instruction: Instruction) -> dict[str, Any]:
        """What a worker learns from it: the instruction with the original, and the rewrite."""
        reply = {"role": "assistant", "content": self.rewrite}
        messages = [*instruction.messages(self.original, language=self.language), reply]
        asked = {"instruction": instruction.fingerprint}
        return {"messages": messages, "provenance": {**self.provenance, "asked": asked}}


def read_seed_pairs(path: str) -> list[SeedPair]:
    """The pairs that task `review` or `rewrite` has written; UserError for rows that are none.

    A text that stands for its own rewrite, because none has passed the checks, counts where people have taken it so.
    """
    pairs = []
    for item in read_items(path):
        provenance = dict(item.record)
        if not provenance.get(PASSED, True) and "review" not in provenance:
            continue
        original, rewrite = provenance.pop(ORIGINAL, None), provenance.pop(REWRITE, None)
        if original is None:
            raise UserError(
                f"{path}: has rows without {ORIGINAL!r} and {REWRITE!r}; give pairs of task review or rewrite"
            )
        pairs.append(SeedPair(original, rewrite, item.language, provenance))
    if not pairs:
        raise UserError(f"{path}: holds no pair whose rewrite has passed the checks; review them, or rewrite again")
    return pairs


def chosen(pairs: Sequence[SeedPair], perplexities: Sequence[float], *, choice: str, most: int, seed: int) -> list[int]:
    """The numbers of the pairs that are taken, ascending.

    Args:
        pairs: all of them.
        perplexities: of their rewrites; not read for a random choice.
        choice: random, low_perplexity or high_perplexity.
        most: pairs at most; 0: all.
        seed: of a random choice, which follows from it and the texts alone.
    """
    if choice == RANDOM:
        draws: Sequence[float] = [unit_hash(f"{seed}:{pair.original}") for pair in pairs]
    else:
        draws = [-value if choice == HIGH_PERPLEXITY else value for value in perplexities]
    order = sorted(range(len(pairs)), key=lambda number: (draws[number], number))
    return sorted(order[: most or None])
