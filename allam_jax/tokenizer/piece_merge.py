"""Merges a second language's BPE vocabulary into a base model (ALLaM section 2.2); both keep their segmentation.

SentencePiece BPE has no merge list. It joins the adjacent pair whose concatenation has the highest score, the leftmost
first. So scores are priorities, and only their order within each language matters. Text without a character of the
script never matches a new piece. The two orders meet only in the space `▁`, for which the words of the script have
priority.
"""

import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from allam_jax.errors import UserError
from allam_jax.tokenizer.kinds import Kind
from allam_jax.tokenizer.scripts import has_letter_outside, script_pattern
from allam_jax.tokenizer.sentencepiece_model import ModelProto, Piece, SentencePieceModel
from allam_jax.tokenizer.tokenizer import Tokenizer, with_control_tokens
from allam_jax.tokenizer.tokenizer_json import CHAT_END, CHAT_START, check_expressible

CHAT_TOKENS = (CHAT_START, CHAT_END)
_MUST_AGREE = {
    "trainer_spec": ("byte_fallback", "split_digits", "split_by_unicode_script", "treat_whitespace_as_suffix"),
    "normalizer_spec": ("precompiled_charsmap", "add_dummy_prefix", "remove_extra_whitespaces", "escape_whitespaces"),
}


def merge_vocabularies(
    base: Tokenizer,
    target: Tokenizer,
    *,
    script: str = "arabic",
    control_tokens: Sequence[str] = CHAT_TOKENS,
) -> Tokenizer:
    """The base vocabulary, extended by the target's pieces of `script`, then by `control_tokens`.

    Every base id keeps its piece; the new pieces follow in the target's order. Text without a character of `script`
    gets exactly the base's ids. If the target was trained with `like=base, script=script`, text of the script, with
    spaces, digits and signs, gets exactly the target's pieces; in text of several scripts, each side keeps its own (see
    `verify_merge`). Other targets can have pieces that mix the script with other characters. Pieces with a character
    that the base lacks are left out; `verify_merge` shows the effect. The base's pieces of the script, of several
    characters, that the target lacks become unreachable, which exactness needs.

    UserError if the two are not SentencePiece BPE models with the same normaliser and flags, and with byte fallback, or
    if no `tokenizer.json` could express the result.
    """
    base_model, target_model = _comparable(base, target)
    pattern = script_pattern(script)
    proto = ModelProto()
    proto.CopyFrom(base_model.proto)
    base_pieces = {piece.piece: piece for piece in proto.pieces}
    target_pieces = [p for p in target_model.proto.pieces if p.type == Piece.NORMAL and pattern.search(p.piece)]
    if not target_pieces:
        raise UserError(f"{target_model.source}: has no piece of script {script!r}; nothing to merge")
    # New pieces may use only characters that the base has or the script adds. Others would change other languages.
    known = {piece for piece in base_pieces if len(piece) == 1} | {p.piece for p in target_pieces if len(p.piece) == 1}
    target_pieces = [piece for piece in target_pieces if known.issuperset(piece.piece)]

    scores = _target_scores(target_pieces, [p for p in proto.pieces if not pattern.search(p.piece)])
    shared = set(scores) & set(base_pieces)
    base_kinds = dict(zip(base_model.pieces, base_model.kinds, strict=True))
    for text in sorted(shared):
        if base_kinds[text] not in (Kind.NORMAL, Kind.RETIRED):
            raise UserError(f"{base_model.source}: piece {text!r} is a special piece there; expected an ordinary one")
        if len(text) > 1:
            base_pieces[text].type, base_pieces[text].score = Piece.NORMAL, scores[text]
    for piece in proto.pieces:
        lacking = len(piece.piece) > 1 and piece.piece not in scores
        if lacking and piece.type == Piece.NORMAL and pattern.search(piece.piece):
            # CONTROL, because SentencePiece still merges through UNUSED pieces. The negative score marks the piece.
            piece.type, piece.score = Piece.CONTROL, min(piece.score, -1.0)
    for piece in target_pieces:
        if piece.piece not in shared:
            proto.pieces.add(piece=piece.piece, score=scores[piece.piece], type=Piece.NORMAL)
    proto.trainer_spec.vocab_size = len(proto.pieces)
    source = f"{base_model.source} + {target_model.source}"
    model = SentencePieceModel(proto.SerializeToString(deterministic=True), source=source)
    check_expressible(model)
    return with_control_tokens(Tokenizer(model), control_tokens)


def _comparable(base: Tokenizer, target: Tokenizer) -> tuple[SentencePieceModel, SentencePieceModel]:
    base_model, target_model = base.model, target.model
    for model in (base_model, target_model):
        if not isinstance(model, SentencePieceModel):
            raise UserError(
                f"{model.source}: only SentencePiece BPE models can be merged; the task extend_tokenizer goes on with "
                "the merges of a byte-level BPE (Llama 3, Qwen)"
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
    if not base_model.proto.trainer_spec.byte_fallback:
        raise UserError(f"{base_model.source}: expected byte_fallback for unknown characters, as in Llama")
    return base_model, target_model


def _target_scores(pieces: Sequence[Piece], others: Sequence[Piece]) -> dict[str, float]:
    """New scores in the order of the target's: consecutive numbers, so that float32 distinguishes all ranks.

    They are above the scores of all `others` of the base, so that a word of the script takes its space before the
    base's runs of spaces and pieces such as `-▁` do. They are half-way between whole numbers, so that none equals a
    score of the base.
    """
    ranks = {score: rank for rank, score in enumerate(sorted({piece.score for piece in pieces}, reverse=True))}
    top = float(np.ceil(max((piece.score for piece in others), default=0.0))) + len(ranks)
    scores = {piece.piece: top - 0.5 - ranks[piece.score] for piece in pieces}
    assert len({float(np.float32(score)) for score in scores.values()}) == len(ranks)
    return scores


def verify_merge(
    base: Tokenizer, target: Tokenizer, merged: Tokenizer, lines: Iterable[str], *, script: str = "arabic"
) -> dict[str, Any]:
    """Compares the segmentation of real lines before and after the merge, piece by piece over the whole line.

    Lines (after the base's normaliser) are of three kinds, by which the keys of the result are named; empty lines are
    left out. For script="arabic":
        arabic: characters of the script, and no letter outside it; expects exactly the target's pieces.
        mixed: characters of the script, and letters outside it; expects the target's pieces where these have a
            character of the script, and the base's pieces of each stretch between them.
        non_arabic: no character of the script; expects exactly the base's ids.

    Returns:
        `{KIND_lines: number, KIND_equal: share of these lines that are as expected (None without lines), "differing"}`;
            `differing` has up to five lines of each kind that are not as expected, as {line, kind, expected, got}.
    """
    pattern = script_pattern(script)
    lines_of, equal_of = (dict.fromkeys((script, "mixed", f"non_{script}"), 0) for _ in range(2))
    differing: list[dict[str, Any]] = []
    for line in lines:
        if not line:
            continue
        base_ids = base.encode(line)
        normalized = base.decode(base_ids)
        if not pattern.search(normalized):
            kind, expected = f"non_{script}", _pieces(base, base_ids)
        elif not has_letter_outside(script, normalized):
            kind, expected = script, _pieces(target, target.encode(line))
        else:
            kind, expected = "mixed", _pieces_of_both(base, target, line, pattern)
        got_ids = merged.encode(line)
        got = _pieces(merged, got_ids)
        equal = got == expected and (kind != f"non_{script}" or got_ids == base_ids)
        lines_of[kind] += 1
        equal_of[kind] += equal
        if not equal and lines_of[kind] - equal_of[kind] <= 5:
            differing.append({"line": line, "kind": kind, "expected": expected, "got": got})
    report: dict[str, Any] = {}
    for kind, total in lines_of.items():
        report[f"{kind}_lines"] = total
        report[f"{kind}_equal"] = equal_of[kind] / total if total else None
    return report | {"differing": differing}


def _pieces(tokenizer: Tokenizer, ids: Sequence[int]) -> list[str]:
    return [tokenizer.id_to_piece(index) for index in ids]


def _pieces_of_both(base: Tokenizer, target: Tokenizer, line: str, pattern: re.Pattern[str]) -> list[str]:
    """The target's pieces where they have a character of the script; the base's pieces of each stretch between them."""
    pieces: list[str] = []
    for of_script, run in itertools.groupby(_with_surface(target, line), key=lambda p: bool(pattern.search(p[0]))):
        if of_script:
            pieces.extend(piece for _, spelled in run for piece in spelled)
        else:
            pieces.extend(_pieces(base, base.segment_piece("".join(surface for surface, _ in run))))
    return pieces


def _with_surface(tokenizer: Tokenizer, line: str) -> Iterator[tuple[str, list[str]]]:
    """Yields (text, pieces) of every piece, and of all the bytes that together spell one character."""
    for is_byte, run in itertools.groupby(tokenizer.encode(line), key=tokenizer.is_byte):
        spelled = _pieces(tokenizer, list(run))
        if not is_byte:
            yield from ((piece, [piece]) for piece in spelled)
            continue
        for character in bytes(int(piece[3:-1], 16) for piece in spelled).decode("utf-8"):
            size = len(character.encode())
            yield character, spelled[:size]
            del spelled[:size]
