"""Trains SentencePiece BPE models as Llama-2's: identity normaliser, byte fallback, digits one by one."""

import io
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import sentencepiece

from allam_jax.errors import UserError
from allam_jax.tokenizer.scripts import Script, character_class
from allam_jax.tokenizer.sentencepiece_model import ModelProto, SentencePieceModel
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

    The result depends on the texts and these arguments only, not on `threads` (default: all cores). It is saved to the
    directory `output` if one is given.

    required_characters: get a piece of their own, however rare. character_coverage: the share of the characters of the
    text that get one; the rest is spelled in bytes.
    like: copy normaliser, flags and special ids from this SentencePiece tokenizer, as a merge with it needs.
    script: train the target side of a merge for this writing system. No piece then holds the script's characters
    beside others (but for a space before them), nor is a run of spaces: such pieces could not be merged exactly
    without touching other languages.

    Raises UserError for texts without a line, or a vocabulary too large or too small for them.
    """
    trainer = dict(_TRAINER_DEFAULTS)
    normalizer: dict[str, Any] = {"add_dummy_prefix": True, "remove_extra_whitespaces": False}
    if like is not None:
        if not isinstance(like.model, SentencePieceModel):
            raise UserError(f"{like.model.source}: expected a SentencePiece model to train a tokenizer like it")
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
        raise sentences.failure or _explained(error, vocab_size=vocab_size, lines=sentences.lines) from None
    proto = ModelProto.FromString(serialized.getvalue())
    proto.trainer_spec.num_threads = 1  # the same bytes from any machine
    proto.trainer_spec.pretokenization_delimiter = ""
    tokenizer = Tokenizer.from_sentencepiece(
        proto.SerializeToString(deterministic=True), source=str(output or "trained tokenizer")
    )
    if output is not None:
        tokenizer.save(output)
    return tokenizer


class _Sentences:
    """Iterates over the lines of texts as the trainer wants them; counts them and keeps an exception of the source."""

    def __init__(self, texts: Iterable[str], *, script: Script | None):
        self.lines = 0
        self.failure: Exception | None = None
        self._texts = texts
        self._border = None
        if script:
            inside = f"[{character_class(script)}]"
            outside = f"[^{character_class(script)} ▁]"
            self._border = re.compile(f"(?<={inside})(?={outside})|(?<={outside})(?={inside})")

    def __iter__(self) -> Iterator[str]:
        try:
            for text in self._texts:
                for line in text.replace(_RESERVED, " ").replace(_DELIMITER, " ").split("\n"):
                    if not line.strip():
                        continue
                    self.lines += 1
                    if self._border is not None:
                        line = self._border.sub(_DELIMITER, re.sub("[ ▁]+", " ", line))
                    yield line
        except Exception as error:  # the trainer would bury it in a RuntimeError
            self.failure = error
            raise


def _explained(error: RuntimeError, *, vocab_size: int, lines: int) -> Exception:
    message = str(error)
    if lines == 0:
        return UserError("tokenizer training: the texts have no line with characters; check the sources")
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
