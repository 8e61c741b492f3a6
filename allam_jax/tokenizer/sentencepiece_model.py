"""The SentencePiece BPE backend: a `tokenizer.model`, which is a protobuf."""

import functools
import itertools
import os
import re
from collections.abc import Sequence
from typing import Any

import sentencepiece
from google.protobuf.message import DecodeError
from sentencepiece import sentencepiece_model_pb2

from allam_jax.errors import UserError
from allam_jax.tokenizer.kinds import Kind, special_tokens

_messages: Any = sentencepiece_model_pb2  # generated at import, so it has no types
ModelProto: Any = _messages.ModelProto
TrainerSpec: Any = _messages.TrainerSpec
Piece: Any = ModelProto.SentencePiece
SPACE = "▁"

_CACHED_CHUNKS = 1 << 17
_CACHED_LENGTH = 32  # characters
_FEW = 256  # texts

_MERGEABLE = (Kind.NORMAL, Kind.USER_DEFINED, Kind.UNUSED)


def _kind(piece: Any, *, declared: Sequence[str]) -> Kind:
    # SentencePiece has no type for pieces that text must not reach (it still merges through UNUSED ones), so the merge
    # of vocabularies retires pieces as CONTROL. They keep a negative score; genuine control pieces have score 0.
    if piece.type == Piece.CONTROL and piece.score < 0 and piece.piece not in declared:
        return Kind.RETIRED
    return Kind[Piece.Type.Name(piece.type)]


class SentencePieceModel:
    """Text <-> ids with a SentencePiece BPE model.

    `source` names the model in error messages. UserError if `serialized` is no SentencePiece model, or is not BPE.
    """

    def __init__(self, serialized: bytes, *, source: str):
        try:
            self.proto = ModelProto.FromString(serialized)
            if not self.proto.pieces or not self.proto.HasField("trainer_spec"):
                raise ValueError("cut off between two fields")
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=serialized)
        except (DecodeError, ValueError):
            raise UserError(
                f"{source}: not a SentencePiece model or truncated; expected a BPE model written by sentencepiece "
                "(a Llama-3 tokenizer.model is a tiktoken file: give its tokenizer.json instead)"
            ) from None
        except RuntimeError as error:  # a model that is read, but makes no sense, such as a piece that it has twice
            reason = str(error).splitlines()[-1].rpartition("] ")[2]
            raise UserError(f"{source}: sentencepiece refuses the model ({reason}); expected a BPE model") from None
        model_type = self.proto.trainer_spec.model_type
        if model_type != TrainerSpec.BPE:
            name = TrainerSpec.ModelType.Name(model_type)
            raise UserError(f"{source}: a SentencePiece {name} model; expected BPE (retrain with model_type=bpe)")
        self.source = source
        self.pieces = [piece.piece for piece in self.proto.pieces]
        trainer = self.proto.trainer_spec
        declared = (trainer.bos_piece, trainer.eos_piece, trainer.pad_piece, *trainer.control_symbols)
        self.kinds = [_kind(piece, declared=declared) for piece in self.proto.pieces]
        self.special_tokens = special_tokens(self.pieces, self.kinds)
        ids = (getattr(self._processor, f"{name}_id")() for name in ("unk", "bos", "eos", "pad"))
        self.unk_id, self.bos_id, self.eos_id, self.pad_id = (index if index >= 0 else None for index in ids)

    def __reduce__(self):
        return functools.partial(SentencePieceModel, source=self.source), (self.serialized(),)

    def serialized(self) -> bytes:
        """The bytes of `tokenizer.model`."""
        return self.proto.SerializeToString(deterministic=True)

    def encode(self, text: str) -> list[int]:
        """Ids of `text`; the string of a special token in it is plain text. UserError for a lone surrogate."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` for many texts."""
        if self._chunk_pattern is None:
            return self._encode_uncached(self._processor, texts)
        prefix = " " if self.proto.normalizer_spec.add_dummy_prefix else ""
        find, cache = self._chunk_pattern.findall, self._chunk_ids
        chunked = [find(prefix + text) if text else [] for text in texts]
        missing = list({chunk for chunks in chunked for chunk in chunks if chunk not in cache})
        fresh = dict(zip(missing, self._encode_uncached(self._processor_without_prefix, missing), strict=True))
        short = ((chunk, ids) for chunk, ids in fresh.items() if len(chunk) <= _CACHED_LENGTH)
        cache.update(itertools.islice(short, max(0, _CACHED_CHUNKS - len(cache))))
        get = cache.get
        return [list(itertools.chain.from_iterable([get(c) or fresh[c] for c in chunks])) for chunks in chunked]

    def encode_parsed(self, text: str) -> list[int]:
        """Ids of `text`, in which the string of every special token becomes its id.

        The text between two special tokens is encoded as a text of its own, with the dummy prefix, as Llama-2 does.
        """
        ids: list[int] = []
        for section in self._special_pattern.split(text):
            special = self.special_tokens.get(section)
            ids.extend([special] if special is not None else self.encode(section))
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids, of which none is a special token; invalid UTF-8 becomes U+FFFD."""
        if self._retired:
            ids = list(itertools.chain.from_iterable(self._retired.get(i, (i,)) for i in ids))
        return self._processor.decode(list(ids))

    def segment_piece(self, piece: str) -> list[int]:
        """Ids of a piece's text, where `▁` is a space, without a dummy prefix."""
        return self._processor_without_prefix.encode(piece.replace(SPACE, " "))

    def fingerprint_state(self) -> object:
        """JSON-able value of everything that determines the ids of a text."""
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
    def _chunk_pattern(self) -> re.Pattern[str] | None:
        """Cuts a text into chunks whose separate encodings give the same ids; None where that may fail.

        No merge crosses a place where no piece has the two characters side by side. In models such as Llama's, such
        places are before a space that follows another character, and around a line break.
        """
        normalizer = self.proto.normalizer_spec
        mergeable = [p for p, kind in zip(self.pieces, self.kinds, strict=True) if kind in _MERGEABLE and len(p) > 1]
        if (
            normalizer.precompiled_charsmap
            or normalizer.remove_extra_whitespaces
            or not normalizer.escape_whitespaces
            or self.proto.trainer_spec.treat_whitespace_as_suffix
            or not self.proto.trainer_spec.byte_fallback  # without it, neighbouring unknown characters share one id
            or any(re.search(r"[^▁][▁ ]|\n", piece) for piece in mergeable)
        ):
            return None
        return re.compile(r"\n|[ ▁]*[^ ▁\n]+|[ ▁]+")

    @functools.cached_property
    def _chunk_ids(self) -> dict[str, list[int]]:
        return {}  # grows with the words seen

    def _encode_uncached(
        self, processor: sentencepiece.SentencePieceProcessor, texts: Sequence[str]
    ) -> list[list[int]]:
        try:
            if len(texts) <= _FEW:  # a list is encoded by threads, which are started for each call
                return [processor.encode(text) for text in texts]
            return processor.encode(list(texts), num_threads=os.cpu_count() or 1)
        except (RuntimeError, TypeError):
            for text in texts:
                if match := re.search("[\ud800-\udfff]", text):
                    raise UserError(
                        f"text {text[:40]!r} has the lone surrogate {match[0]!r}, which is not a character; decode the "
                        "text's source with errors='replace'"
                    ) from None
            raise

    @functools.cached_property
    def _special_pattern(self) -> re.Pattern[str]:
        # The longest first, so that the leftmost, longest match wins, as in the tokenizers library.
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
        # SentencePiece decodes a control piece to nothing, but a retired piece still has a text.
        return {i: self.segment_piece(self.pieces[i]) for i, kind in enumerate(self.kinds) if kind is Kind.RETIRED}
