"""Where each row of an enlarged embedding comes from: kept base rows, and the base pieces that spell each new piece."""

import dataclasses

import numpy as np

from allam_jax.errors import UserError
from allam_jax.tokenizer.kinds import Kind
from allam_jax.tokenizer.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class ExpansionPlan:
    """How to build `merged`'s embedding rows from `base`'s. Every merged id is in exactly one of kept, new, special.

    kept: int64 [n, 2], rows (merged id, base id) of the pieces that both have.
    new: merged id -> the base ids of its surface, segmented as text.
    special: the same for control and chat tokens that base lacks; their text never stood where they will stand.
    spelled_in_bytes: the ids of new or special whose base ids are all bytes (their mean says little: such means are
    nearly identical to each other).
    """

    base_size: int
    merged_size: int
    kept: np.ndarray
    new: dict[int, list[int]]
    special: dict[int, list[int]]
    spelled_in_bytes: frozenset[int]


def expansion_plan(base: Tokenizer, merged: Tokenizer) -> ExpansionPlan:
    """Matches the two vocabularies by piece, not by place; see ExpansionPlan.

    Works for two SentencePiece tokenizers or two byte-level BPE tokenizers. UserError for one of each, or if nothing
    matches.
    """
    if type(base.model) is not type(merged.model):
        raise UserError(
            f"{merged.model.source}: of another kind than {base.model.source}; expected two SentencePiece models or "
            "two tokenizer.json files"
        )
    kept: list[tuple[int, int]] = []
    new: dict[int, list[int]] = {}
    special: dict[int, list[int]] = {}
    for index, (piece, kind) in enumerate(zip(merged.model.pieces, merged.model.kinds, strict=True)):
        origin = base.piece_to_id(piece)
        if origin is not None and _same_role(base.model.kinds[origin], kind):
            kept.append((index, origin))
        elif kind.is_special or kind is Kind.USER_DEFINED:
            special[index] = base.encode(piece) if kind is Kind.USER_DEFINED else base.segment_piece(piece)
        else:
            new[index] = base.segment_piece(piece)
    if not kept:
        raise UserError(f"{merged.model.source}: shares no piece with {base.model.source}; is it the right base?")
    return ExpansionPlan(
        base_size=base.vocab_size,
        merged_size=merged.vocab_size,
        kept=np.asarray(kept, dtype=np.int64).reshape(-1, 2),
        new=new,
        special=special,
        spelled_in_bytes=frozenset(
            index for index, ids in (new | special).items() if ids and all(base.is_byte(i) for i in ids)
        ),
    )


def _same_role(base_kind: Kind, merged_kind: Kind) -> bool:
    # A piece that the merge retired keeps its row. Otherwise a byte <0x41> is not the text "<0x41>", nor a control
    # token its text.
    text = (Kind.NORMAL, Kind.RETIRED, Kind.UNUSED)
    return base_kind is merged_kind or (base_kind in text and merged_kind in text)
