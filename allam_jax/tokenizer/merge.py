"""Merges a second language's BPE vocabulary into a base model (ALLaM section 2.2); both keep their segmentation.

SentencePiece BPE has no merge list: it joins the adjacent pair whose concatenation has the highest score, leftmost
first. So scores are priorities, and order within each language is all that counts. Text without a character of the
script never matches a new piece, and the two orders meet only in the space `▁`.
"""

import itertools
import re
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np

from allam_jax.errors import UserError
from allam_jax.tokenizer.kinds import Kind
from allam_jax.tokenizer.scripts import Script, script_pattern
from allam_jax.tokenizer.sentencepiece_model import SPACE, ModelProto, Piece, SentencePieceModel
from allam_jax.tokenizer.tokenizer import Tokenizer, with_control_tokens

CHAT_TOKENS = ("<|im_start|>", "<|im_end|>")
_MUST_AGREE = {
    "trainer_spec": ("byte_fallback", "split_digits", "split_by_unicode_script", "treat_whitespace_as_suffix"),
    "normalizer_spec": ("precompiled_charsmap", "add_dummy_prefix", "remove_extra_whitespaces", "escape_whitespaces"),
}
_OUTLIER = -1e8  # Llama-2 gives white space -1e9: not a rank


def merge(
    base: Tokenizer,
    target: Tokenizer,
    *,
    script: Script = "arabic",
    control_tokens: Sequence[str] = CHAT_TOKENS,
    base_only: Literal["retire", "demote"] = "retire",
) -> Tokenizer:
    """The base vocabulary extended with the target's pieces of `script`, then with `control_tokens`.

    Every base id keeps its piece; new pieces follow in the target's order. Text without a character of `script` gets
    exactly the base's ids. Text of the script is segmented as by `target`, exactly so if target was trained with
    `like=base, script=script`. (Other targets may have pieces that mix the script with characters or pieces that only
    they have; what cannot be reached from the base's characters is left out, and verify_merge shows what it costs.)

    base_only: what becomes of multi-character pieces of the script that target lacks. "retire" makes text never reach
    them (needed for exactness); "demote" puts them below all others.

    Raises UserError if the two are not both SentencePiece BPE models with the same normaliser and flags.
    """
    base_model, target_model = _comparable(base, target)
    pattern = script_pattern(script)
    proto = ModelProto()
    proto.CopyFrom(base_model.proto)
    base_pieces = {piece.piece: piece for piece in proto.pieces}
    target_pieces = [p for p in target_model.proto.pieces if p.type == Piece.NORMAL and pattern.search(p.piece)]
    if not target_pieces:
        raise UserError(f"{target_model.source}: has no piece of script {script!r}; nothing to merge")
    # A new piece must be reachable from characters that the base has; giving it others would change other languages.
    known = {piece for piece in base_pieces if len(piece) == 1} | {p.piece for p in target_pieces if len(p.piece) == 1}
    target_pieces = [piece for piece in target_pieces if known.issuperset(piece.piece)]

    scores = _target_scores(target_pieces, proto)
    shared = set(scores) & set(base_pieces)
    base_kinds = dict(zip(base_model.pieces, base_model.kinds, strict=True))
    for text in sorted(shared):
        if base_kinds[text] not in (Kind.NORMAL, Kind.RETIRED):
            raise UserError(f"{base_model.source}: piece {text!r} is a special piece there; expected an ordinary one")
        if len(text) > 1:
            base_pieces[text].type, base_pieces[text].score = Piece.NORMAL, scores[text]
    orphans = [
        piece
        for piece in proto.pieces
        if piece.type == Piece.NORMAL
        and len(piece.piece) > 1
        and piece.piece not in scores
        and pattern.search(piece.piece)
    ]
    if base_only == "retire":
        for piece in orphans:
            # CONTROL, because SentencePiece still merges through UNUSED pieces. The score, negative, marks it.
            piece.type, piece.score = Piece.CONTROL, min(piece.score, -1.0)
    elif orphans:
        floor = min(piece.score for piece in proto.pieces if piece.score > _OUTLIER)
        floor = min(floor, min(scores.values()))
        for rank, piece in enumerate(sorted(orphans, key=lambda p: -p.score)):
            piece.score = floor - 1.0 - rank
    for piece in target_pieces:
        if piece.piece not in shared:
            proto.pieces.add(piece=piece.piece, score=scores[piece.piece], type=Piece.NORMAL)
    proto.trainer_spec.vocab_size = len(proto.pieces)
    source = f"{base_model.source} + {target_model.source}"
    merged = Tokenizer.from_sentencepiece(proto.SerializeToString(deterministic=True), source=source)
    return with_control_tokens(merged, control_tokens)


def _comparable(base: Tokenizer, target: Tokenizer) -> tuple[SentencePieceModel, SentencePieceModel]:
    base_model, target_model = base.model, target.model
    for model in (base_model, target_model):
        if not isinstance(model, SentencePieceModel):
            raise UserError(
                f"{model.source}: expected a SentencePiece BPE model to merge; byte-level BPE has merge rules"
            )
    assert isinstance(base_model, SentencePieceModel)
    assert isinstance(target_model, SentencePieceModel)
    for spec, keys in _MUST_AGREE.items():
        for key in keys:
            ours, theirs = (getattr(getattr(model.proto, spec), key) for model in (base_model, target_model))
            if ours != theirs:
                shown = "" if isinstance(ours, bytes) else f" ({theirs}, the base has {ours})"
                raise UserError(
                    f"{target_model.source}: {key} differs from {base_model.source}{shown}; "
                    "train the target with the base as its model (like=base)"
                )
    return base_model, target_model


def _target_scores(pieces: Sequence[Piece], base: ModelProto) -> dict[str, float]:
    """New scores in the order of the target's: consecutive, so that float32 keeps every rank apart.

    They lie half-way between whole numbers (no tie with a base score), above the base's runs of spaces: the only base
    pieces that compete with them, for the space before a word.
    """
    spaces = [p.score for p in base.pieces if len(p.piece) > 1 and not p.piece.strip(SPACE) and p.score > _OUTLIER]
    ranks = {score: rank for rank, score in enumerate(sorted({piece.score for piece in pieces}, reverse=True))}
    top = max(spaces, default=0.0)
    if spaces:
        top = float(np.ceil(top)) + len(ranks)
    scores = {piece.piece: top - 0.5 - ranks[piece.score] for piece in pieces}
    assert len({float(np.float32(score)) for score in scores.values()}) == len(ranks)
    return scores


def verify_merge(
    base: Tokenizer, target: Tokenizer, merged: Tokenizer, lines: Iterable[str], *, script: Script = "arabic"
) -> dict[str, Any]:
    """Compares the segmentation of real lines before and after the merge. With script="arabic" the keys are:

    arabic_lines, non_arabic_lines: how many lines have, and lack, a character of the script (empty lines count not).
    arabic_equal: share of the former where every piece with a character of the script begins and ends as in `target`.
    arabic_identical: share of the former where *all* pieces are target's. Punctuation, digits and other languages in
    them are the base's by design, so this may be lower.
    non_arabic_equal: share of the latter with exactly the base's ids. Shares of no line are None.
    differing: up to five lines that are not equal, as {line, expected, got}.
    """
    name = script if isinstance(script, str) else "script"
    pattern = script_pattern(script)
    counts = {"arabic": 0, "arabic_equal": 0, "arabic_identical": 0, "non_arabic": 0, "non_arabic_equal": 0}
    differing: list[dict[str, Any]] = []
    for line in lines:
        if not line:
            continue
        got = merged.encode(line)
        if pattern.search(line):
            expected = target.encode(line)
            equal = _borders(target, expected, pattern) == _borders(merged, got, pattern)
            same = [target.id_to_piece(i) for i in expected] == [merged.id_to_piece(i) for i in got]
            counts["arabic"] += 1
            counts["arabic_equal"] += equal
            counts["arabic_identical"] += same
            expected_from = target
        else:
            expected = base.encode(line)
            equal = expected == got
            counts["non_arabic"] += 1
            counts["non_arabic_equal"] += equal
            expected_from = base
        if not equal and len(differing) < 5:
            pieces = {
                "expected": [expected_from.id_to_piece(i) for i in expected],
                "got": list(map(merged.id_to_piece, got)),
            }
            differing.append({"line": line, **pieces})

    def share(key: str, total: str) -> float | None:
        return counts[key] / counts[total] if counts[total] else None

    return {
        f"{name}_lines": counts["arabic"],
        f"{name}_equal": share("arabic_equal", "arabic"),
        f"{name}_identical": share("arabic_identical", "arabic"),
        f"non_{name}_lines": counts["non_arabic"],
        f"non_{name}_equal": share("non_arabic_equal", "non_arabic"),
        "differing": differing,
    }


def _borders(tokenizer: Tokenizer, ids: Sequence[int], pattern: re.Pattern[str]) -> list[tuple[int, str]]:
    """(Place in the text, surface) of the pieces with a character of the script; bytes are joined to characters."""
    borders = []
    place = 0
    for is_byte, run in itertools.groupby(ids, key=tokenizer.is_byte):
        pieces = [tokenizer.id_to_piece(index) for index in run]
        if is_byte:
            pieces = list(bytes(int(piece[3:-1], 16) for piece in pieces).decode("utf-8"))
        for piece in pieces:
            if pattern.search(piece):
                borders.append((place, piece))
            place += len(piece)
    return borders
