"""Trains SentencePiece BPE models as Llama-2's: identity normaliser, byte fallback, digits one by one."""

import io
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import sentencepiece

from allam_jax.errors import UserError
from allam_jax.tokenizer.kinds import Kind
from allam_jax.tokenizer.scripts import Script, character_class, has_letter_outside, script_pattern
from allam_jax.tokenizer.sentencepiece_model import ModelProto, Piece, SentencePieceModel
from allam_jax.tokenizer.tokenizer import Tokenizer

# Llama-2's choices: what a piece may be made of, and which ids come first.
_TRAINER_DEFAULTS: dict[str, Any] = {
    "byte_fallback": True,
    "split_digits": True,
    "split_by_unicode_script": True,
    "split_by_number": True,
    "split_by_whitespace": True,
    "treat_whitespace_as_suffix": False,
    "allow_whitespace_only_pieces": True,
    "max_sentencepiece_length": 16,
    "unk_id": 0,
    "bos_id": 1,
    "eos_id": 2,
    "pad_id": -1,
    "unk_piece": "<unk>",
    "bos_piece": "<s>",
    "eos_piece": "</s>",
    "pad_piece": "<pad>",
}

_RESERVED = "\u2585"  # SentencePiece skips every line that contains it
_DELIMITER = "\ufdd0"  # a non-character: marks where no piece may reach across, while training


def train_sentencepiece(
    texts: Iterable[str],
    *,
    output: Path | None = None,
    vocab_size: int,
    control_tokens: Sequence[str] = (),
    required_characters: str = "",
    character_coverage: float = 0.99995,
    like: Tokenizer | None = None,
    script: Script | None = None,
    threads: int | None = None,
) -> Tokenizer:
    """Trains a BPE tokenizer of exactly `vocab_size` pieces on `texts`, one line a sentence, all in memory.

    (With both `like` and `script` it has more: see there.)

    The result depends on the texts and these arguments only, not on `threads` (default: all cores). It is saved to the
    directory `output` if one is given.

    required_characters: get a piece of their own, however rare. character_coverage: the share of the characters of the
    text that get one; the rest is spelled in bytes.
    like: copy normaliser, flags and special ids from this SentencePiece tokenizer, as a merge with it needs.
    script: train the target side of a merge for this writing system: on its characters and the single spaces between
    them only, so that no piece holds anything else. Where other text stood no piece reaches across.
    like and script: the `vocab_size` pieces are followed by those of `like` that text of the script also meets: signs
    (see _signs). They cost the merged vocabulary nothing, and give it and this tokenizer the same segmentation of
    every text whose letters are all of the script.

    Raises UserError for texts without a line (of the script), a vocabulary too large or too small for them, or required
    characters outside the script that `like` may not have.
    """
    trainer = dict(_TRAINER_DEFAULTS)
    normalizer: dict[str, Any] = {"add_dummy_prefix": True, "remove_extra_whitespaces": False}
    signs: list[Piece] = []
    if like is not None:
        if not isinstance(like.model, SentencePieceModel):
            raise UserError(f"{like.model.source}: expected a SentencePiece model to train a tokenizer like it")
        if script and (foreign := script_pattern(script).sub("", required_characters)):
            raise UserError(
                f"tokenizer training: required_characters {foreign!r} are not of script {script!r}; leave them out, "
                "a merge takes everything outside the script from the base"
            )
        signs = _signs(like.model, script=script) if script else []
        trainer = {key: getattr(like.model.proto.trainer_spec, key) for key in _TRAINER_DEFAULTS}
        spec = like.model.proto.normalizer_spec
        normalizer = {key: getattr(spec, key) for key in normalizer}
        if spec.precompiled_charsmap:
            copy = sentencepiece.SentencePieceNormalizer(normalizer_spec=spec.SerializeToString(), **normalizer)
            normalizer = {"normalizer": copy}
    if "normalizer" not in normalizer:
        normalizer["normalization_rule_name"] = "identity"
    sentences = _Sentences(texts, script=script)
    serialized = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sentences),
            model_writer=serialized,
            model_type="bpe",
            vocab_size=vocab_size,
            control_symbols=list(control_tokens),
            required_chars=required_characters,
            character_coverage=character_coverage,
            pretokenization_delimiter=_DELIMITER if script else "",
            max_sentence_length=1 << 30,  # bytes; the default drops longer lines silently
            shuffle_input_sentence=False,
            num_threads=threads or os.cpu_count() or 1,
            minloglevel=2,
            **trainer,
            **normalizer,
        )
    except RuntimeError as error:
        raise sentences.failure or _explained(error, vocab_size=vocab_size, sentences=sentences) from None
    proto = ModelProto.FromString(serialized.getvalue())
    proto.trainer_spec.num_threads = 1  # the same bytes from any machine
    proto.trainer_spec.pretokenization_delimiter = ""
    _append_below(proto, signs)
    tokenizer = Tokenizer.from_sentencepiece(
        proto.SerializeToString(deterministic=True), source=str(output or "trained tokenizer")
    )
    if output is not None:
        tokenizer.save(output)
    return tokenizer


def _signs(base: SentencePieceModel, *, script: Script) -> list[Piece]:
    """What text of the script meets in the base besides the script's own merges.

    Pieces without a letter and without a character of the script: digits, punctuation, symbols, runs of spaces. And
    the script's single characters: the base knows some that the training text lacks.
    """
    pattern = script_pattern(script)
    return [
        piece
        for piece, kind in zip(base.proto.pieces, base.kinds, strict=True)
        if kind is Kind.NORMAL
        and not has_letter_outside(script, piece.piece)
        and (len(piece.piece) == 1 or not pattern.search(piece.piece))
    ]


def _append_below(proto: ModelProto, pieces: Sequence[Piece]) -> None:
    """Appends the pieces that are missing: below all scores, in the order of their own; what ties goes on tying."""
    known = {piece.piece for piece in proto.pieces}
    floor = min(piece.score for piece in proto.pieces)
    # Ranks, not scores: Llama-2's -1e9 for white space would swallow differences in float32.
    ranks = {score: rank for rank, score in enumerate(sorted({piece.score for piece in pieces}, reverse=True), start=1)}
    for piece in sorted(pieces, key=lambda piece: ranks[piece.score]):
        if piece.piece not in known:
            proto.pieces.add(piece=piece.piece, score=floor - ranks[piece.score], type=Piece.NORMAL)
    proto.trainer_spec.vocab_size = len(proto.pieces)


class _Sentences:
    """Iterates over the lines of texts as the trainer wants them; counts them and keeps an exception of the source."""

    def __init__(self, texts: Iterable[str], *, script: Script | None):
        self.lines = 0
        self.failure: Exception | None = None
        self.wanted = f"characters of script {script!r}" if script else "characters"
        self._texts = texts
        self._inside = script_pattern(script) if script else None
        self._outside = re.compile(f"[^{character_class(script)} ▁]+") if script else None

    def __iter__(self) -> Iterator[str]:
        try:
            for text in self._texts:
                for line in text.replace(_RESERVED, " ").replace(_DELIMITER, " ").split("\n"):
                    if not (self._inside.search(line) if self._inside else line.strip()):
                        continue
                    self.lines += 1
                    if self._outside:
                        # No run of spaces may arise, not even of the dummy prefix and a first space.
                        line = self._outside.sub(_DELIMITER, re.sub("[ ▁]+", " ", line).strip(" "))
                    yield line
        except Exception as error:  # the trainer would bury it in a RuntimeError
            self.failure = error
            raise


def _explained(error: RuntimeError, *, vocab_size: int, sentences: _Sentences) -> Exception:
    message, lines = str(error), sentences.lines
    if lines == 0:
        return UserError(f"tokenizer training: the texts have no line with {sentences.wanted}; check the sources")
    if match := re.search(r"Please set it to a value <= (\d+)", message):
        return UserError(
            f"tokenizer training: vocab_size {vocab_size} is too large for {lines} lines of text; "
            f"set it to at most {match[1]} or give more text"
        )
    if match := re.search(r"smaller than required_chars\. \d+ vs (\d+)", message):
        return UserError(
            f"tokenizer training: vocab_size {vocab_size} is too small; the control tokens, bytes and characters alone "
            f"need {match[1]} (raise it, or lower character_coverage)"
        )
    return UserError(f"tokenizer training: SentencePiece failed on {lines} lines: {message}")
