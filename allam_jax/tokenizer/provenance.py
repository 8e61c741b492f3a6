"""The origin of each row of an enlarged embedding: a row of the base, or the base pieces that spell the new piece."""

import dataclasses

import numpy as np

from allam_jax.errors import UserError
from allam_jax.tokenizer.kinds import Kind
from allam_jax.tokenizer.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class ExpansionPlan:
    """How to build the embedding rows of `merged` from those of `base`. Each merged id is in one of kept, new, special.

    Attributes:
        base_size, merged_size: sizes of the two vocabularies.
        kept: int64 [n, 2], rows (merged id, base id) of the pieces that both have.
        new: merged id -> the base ids of its text.
        special: merged id -> base ids, for control and chat tokens that the base lacks. Their strings never occurred in
            training text at the places where the tokens will stand.
    """

    base_size: int
    merged_size: int
    kept: np.ndarray
    new: dict[int, list[int]]
    special: dict[int, list[int]]


def expansion_plan(base: Tokenizer, merged: Tokenizer) -> ExpansionPlan:
    """Matches two vocabularies by piece, not by position.

    Both must be SentencePiece tokenizers, or both byte-level BPE tokenizers.

    Raises:
        UserError: the tokenizers are of different types, or have no piece in common.
    """
    if type(base.model) is not type(merged.model):
        raise UserError(
            f"{merged.model.source}: its type differs from that of {base.model.source}; expected two SentencePiece "
            "models or two tokenizer.json files"
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
        raise UserError(f"{merged.model.source}: has no piece in common with {base.model.source}; give the right base")
    return ExpansionPlan(
        base_size=base.vocab_size,
        merged_size=merged.vocab_size,
        kept=np.asarray(kept, dtype=np.int64).reshape(-1, 2),
        new=new,
        special=special,
    )


def _same_role(base_kind: Kind, merged_kind: Kind) -> bool:
    # A piece that the merge retired keeps its row. In all other cases the kinds must agree: the byte <0x41> is not the
    # text "<0x41>", and a control token is not its text.
    text = (Kind.NORMAL, Kind.RETIRED, Kind.UNUSED)
    return base_kind is merged_kind or (base_kind in text and merged_kind in text)
