"""Trains SentencePiece BPE models like Llama-2's: identity normaliser, byte fallback, each digit a piece."""

import io
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import sentencepiece

from allam_jax.errors import UserError
from allam_jax.tokenizer.kinds import Kind
from allam_jax.tokenizer.scripts import character_class, has_letter_outside, script_pattern
from allam_jax.tokenizer.sentencepiece_model import ModelProto, Piece, SentencePieceModel
from allam_jax.tokenizer.tokenizer import Tokenizer, check_control_tokens
from allam_jax.tokenizer.tokenizer_json import check_expressible

# Llama-2's settings: what a piece may consist of, and the first ids.
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

_KEYS = "config.tokenizer_training.vocab_size, or config.pieces where a recipe asks for that"
_RESERVED = "\u2585"  # SentencePiece skips every line that contains it
_DELIMITER = "\ufdd0"  # a non-character; while training, no piece may cross it


def train_sentencepiece(
    texts: Iterable[str],
    *,
    output: Path | None = None,
    vocab_size: int,
    control_tokens: Sequence[str] = (),
    required_characters: str = "",
    character_coverage: float = 0.99995,
    like: Tokenizer | None = None,
    script: str | None = None,
) -> Tokenizer:
    """Trains a BPE tokenizer of `vocab_size` pieces on `texts`, in memory, with each line as a sentence.

    The result depends on the texts and the arguments, but not on the number of cores.

    Args:
        texts, output: what it is trained on; the directory to save the tokenizer to, if any.
        vocab_size: number of pieces; with `like` and `script`, more pieces follow (see `script`).
        required_characters: characters that get a piece of their own even if they are rare.
        character_coverage: share of the text's characters that get a piece; the rest is spelled in bytes.
        like: SentencePiece tokenizer whose normaliser, flags and special ids to copy; a merge with it needs that.
        script: trains the target side of a merge for this writing system, on its characters and the single spaces
            between them only; no piece crosses a place where other text stood. With `like`, the `vocab_size` pieces are
            followed by those of `like` that text of the script also uses (see `_signs`). They cost the merged
            vocabulary nothing, and make both tokenizers segment every text whose letters are all of the script alike.

    Raises:
        UserError: the texts have no line (of the script), the vocabulary is too large or too small for them, or `like`
            may not have required characters outside the script.
    """
    check_control_tokens(control_tokens)
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
        if script:  # for a merge, which would be refused only after the training
            check_expressible(like.model)
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
            num_threads=os.cpu_count() or 1,
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


def _signs(base: SentencePieceModel, *, script: str) -> list[Piece]:
    """The pieces of the base that text of the script uses, besides the script's own merges.

    These are pieces without a letter and without a character of the script (digits, punctuation, symbols, runs of
    spaces), and the script's single characters, some of which the training text may lack.
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
    """Appends the missing pieces with scores below all others, in the order of their own scores; ties remain ties."""
    known = {piece.piece for piece in proto.pieces}
    floor = min(piece.score for piece in proto.pieces)
    # Ranks instead of scores, because float32 cannot distinguish scores near Llama-2's -1e9 for white space.
    ranks = {score: rank for rank, score in enumerate(sorted({piece.score for piece in pieces}, reverse=True), start=1)}
    for piece in sorted(pieces, key=lambda piece: ranks[piece.score]):
        if piece.piece not in known:
            proto.pieces.add(piece=piece.piece, score=floor - ranks[piece.score], type=Piece.NORMAL)
    proto.trainer_spec.vocab_size = len(proto.pieces)


class _Sentences:
    """Iterates over the lines of texts in the form that the trainer needs; counts them; keeps the source's error."""

    def __init__(self, texts: Iterable[str], *, script: str | None):
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
                        # Avoids runs of spaces, including one of the dummy prefix and a first space.
                        line = self._outside.sub(_DELIMITER, re.sub("[ ▁]+", " ", line).strip(" "))
                    yield line
        except Exception as error:  # the trainer would replace it by a RuntimeError
            self.failure = error
            raise


def _explained(error: RuntimeError, *, vocab_size: int, sentences: _Sentences) -> Exception:
    message, lines = str(error), sentences.lines
    if lines == 0:
        return UserError(f"tokenizer training: no line of the texts has {sentences.wanted}; check the sources")
    if match := re.search(r"Please set it to a value <= (\d+)", message):
        return UserError(
            f"tokenizer training: {vocab_size} pieces ({_KEYS}) are too many for {lines} lines of text; "
            f"ask for at most {match[1]}, or give more text"
        )
    if match := re.search(r"smaller than required_chars\. \d+ vs (\d+)", message):
        return UserError(
            f"tokenizer training: {vocab_size} pieces ({_KEYS}) are too few; the control tokens, bytes and characters "
            f"alone need {match[1]}"
        )
    return UserError(f"tokenizer training: SentencePiece failed on {lines} lines: {message}")
