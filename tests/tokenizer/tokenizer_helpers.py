"""Types of the fixtures, and models made by hand."""

import dataclasses

import sentencepiece

from allam_jax.tokenizer.sentencepiece_model import ModelProto, Piece
from allam_jax.tokenizer.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Lines of each kind: `train` to learn from, `test` held out."""

    train: dict[str, list[str]]
    test: dict[str, list[str]]


@dataclasses.dataclass(frozen=True)
class Merge:
    base: Tokenizer
    arabic: Tokenizer
    merged: Tokenizer


def sentencepiece_model(pieces: dict[str, float], **flags) -> Tokenizer:
    """A hand-made BPE model: the given pieces and scores after <unk>, <s>, </s> and the 256 bytes."""
    proto = ModelProto()
    for name, kind in (("<unk>", Piece.UNKNOWN), ("<s>", Piece.CONTROL), ("</s>", Piece.CONTROL)):
        proto.pieces.add(piece=name, score=0.0, type=kind)
    for byte in range(256):
        proto.pieces.add(piece=f"<0x{byte:02X}>", score=0.0, type=Piece.BYTE)
    for piece, score in pieces.items():
        proto.pieces.add(piece=piece, score=score, type=Piece.NORMAL)
    trainer, normalizer = proto.trainer_spec, proto.normalizer_spec
    trainer.model_type, trainer.byte_fallback, trainer.split_digits = 2, True, True
    trainer.vocab_size = len(proto.pieces)
    normalizer.name, normalizer.add_dummy_prefix, normalizer.remove_extra_whitespaces = "identity", True, False
    for name, value in flags.items():
        setattr(normalizer if hasattr(normalizer, name) else trainer, name, value)
    return Tokenizer.from_sentencepiece(proto.SerializeToString(), source="hand-made model")


def reference(tokenizer: Tokenizer) -> sentencepiece.SentencePieceProcessor:
    """SentencePiece itself, on the same model."""
    return sentencepiece.SentencePieceProcessor(model_proto=tokenizer.model.serialized())
