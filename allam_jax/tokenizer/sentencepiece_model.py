"""The SentencePiece BPE backend: a `tokenizer.model`, read from and kept as its protobuf."""

import functools
import itertools
import os
import re
from collections.abc import Sequence

import sentencepiece
from google.protobuf.message import DecodeError
from sentencepiece import sentencepiece_model_pb2

from allam_jax.errors import UserError
from allam_jax.tokenizer.kinds import Kind

ModelProto = sentencepiece_model_pb2.ModelProto
Piece = ModelProto.SentencePiece
SPACE = "▁"

_KINDS = {
    Piece.NORMAL: Kind.NORMAL,
    Piece.UNKNOWN: Kind.UNKNOWN,
    Piece.CONTROL: Kind.CONTROL,
    Piece.USER_DEFINED: Kind.USER_DEFINED,
    Piece.BYTE: Kind.BYTE,
    Piece.UNUSED: Kind.UNUSED,
}


def _kind(piece: Piece) -> Kind:
    # SentencePiece has no type for a piece that text must not reach (UNUSED ones still take part in merges), so the
    # merge retires pieces as CONTROL. They keep their negative score; genuine control pieces have score 0.
    if piece.type == Piece.CONTROL and piece.score < 0:
        return Kind.RETIRED
    return _KINDS[piece.type]


class SentencePieceModel:
    """Text <-> ids with a SentencePiece BPE model.

    `source` names the model in error messages. Raises UserError if `serialized` is no SentencePiece model or is not
    of type BPE.
    """

    def __init__(self, serialized: bytes, *, source: str):
        try:
            self.proto = ModelProto.FromString(serialized)
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=serialized)
        except (DecodeError, RuntimeError, ValueError):
            raise UserError(
                f"{source}: not a SentencePiece model or truncated; expected a BPE model written by sentencepiece "
                "(a Llama-3 tokenizer.model is a tiktoken file: give its tokenizer.json instead)"
            ) from None
        model_type = self.proto.trainer_spec.model_type
        if model_type != sentencepiece_model_pb2.TrainerSpec.BPE:
            name = sentencepiece_model_pb2.TrainerSpec.ModelType.Name(model_type)
            raise UserError(f"{source}: a SentencePiece {name} model; expected BPE (retrain with model_type=bpe)")
        self.source = source
        self.pieces = [piece.piece for piece in self.proto.pieces]
        self.kinds = [_kind(piece) for piece in self.proto.pieces]
        self.special_tokens = {
            p: i for i, (p, k) in enumerate(zip(self.pieces, self.kinds, strict=True)) if k.is_special
        }
        self.unk_id, self.bos_id, self.eos_id, self.pad_id = (
            index if index >= 0 else None
            for index in (
                self._processor.unk_id(),
                self._processor.bos_id(),
                self._processor.eos_id(),
                self._processor.pad_id(),
            )
        )

    def __reduce__(self):
        return functools.partial(SentencePieceModel, source=self.source), (self.serialized(),)

    def serialized(self) -> bytes:
        """The bytes of `tokenizer.model`."""
        return self.proto.SerializeToString(deterministic=True)

    def encode(self, text: str) -> list[int]:
        """Ids of `text`; the strings of special tokens in it are plain text."""
        return self._processor.encode(text)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Like `encode` for many texts, on all cores."""
        return self._processor.encode(list(texts), num_threads=os.cpu_count() or 1)

    def encode_parsed(self, text: str) -> list[int]:
        """Ids of `text` where every special token's string becomes its id.

        The text between two special tokens is encoded as a text of its own (with the dummy prefix, as Llama-2 does).
        """
        ids: list[int] = []
        for section in self._special_pattern.split(text):
            special = self.special_tokens.get(section)
            ids.extend([special] if special is not None else self.encode(section))
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids that are no special tokens; bytes that are not UTF-8 become U+FFFD."""
        if self._retired:
            ids = list(itertools.chain.from_iterable(self._retired.get(i, (i,)) for i in ids))
        return self._processor.decode(list(ids))

    def segment_piece(self, piece: str) -> list[int]:
        """Ids of a piece's surface as text: `▁` is a space, and no dummy prefix comes before it."""
        return self._processor_without_prefix.encode(piece.replace(SPACE, " "))

    def fingerprint_state(self) -> object:
        """Everything that decides which ids a text gets, as JSON."""
        normalizer, trainer = self.proto.normalizer_spec, self.proto.trainer_spec
        return {
            "pieces": [[piece.piece, piece.score, piece.type] for piece in self.proto.pieces],
            "normalizer": [
                normalizer.precompiled_charsmap.hex(),
                normalizer.add_dummy_prefix,
                normalizer.remove_extra_whitespaces,
                normalizer.escape_whitespaces,
            ],
            "byte_fallback": trainer.byte_fallback,
            "treat_whitespace_as_suffix": trainer.treat_whitespace_as_suffix,
            "special": [self.unk_id, self.bos_id, self.eos_id, self.pad_id],
        }

    @functools.cached_property
    def _special_pattern(self) -> re.Pattern[str]:
        # Longest first: the leftmost, longest match wins, as in the tokenizers library.
        alternatives = sorted(self.special_tokens, key=len, reverse=True)
        return re.compile(f"({'|'.join(map(re.escape, alternatives))})")

    @functools.cached_property
    def _processor_without_prefix(self) -> sentencepiece.SentencePieceProcessor:
        proto = ModelProto()
        proto.CopyFrom(self.proto)
        proto.normalizer_spec.add_dummy_prefix = False
        proto.normalizer_spec.remove_extra_whitespaces = False
        return sentencepiece.SentencePieceProcessor(model_proto=proto.SerializeToString())

    @functools.cached_property
    def _retired(self) -> dict[int, list[int]]:
        # SentencePiece decodes a control piece to nothing; a retired piece still has a surface.
        return {i: self.segment_piece(self.pieces[i]) for i, kind in enumerate(self.kinds) if kind is Kind.RETIRED}
