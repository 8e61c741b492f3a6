"""The Tokenizer, with two backends: SentencePiece BPE and `tokenizer.json` (byte-level BPE)."""

import functools
import itertools
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

from allam_jax.errors import UserError
from allam_jax.files import read_json, refuse_pointer, sha256_of_json
from allam_jax.gguf_file import gguf_at
from allam_jax.tokenizer import tokenizer_json
from allam_jax.tokenizer.gguf_tokenizer import unpack_tokenizer
from allam_jax.tokenizer.json_model import JsonModel, byte_alphabet
from allam_jax.tokenizer.kinds import Kind
from allam_jax.tokenizer.sentencepiece_model import SPACE, Piece, SentencePieceModel
from allam_jax.tokenizer.tokenizer_files import MODEL_FILES, SETTINGS_FILE, check_files

Specials = Literal["text", "parse"]


class Tokenizer:
    """Text <-> ids. Tokenizers are immutable and can be pickled, which costs little.

    Ids are 0 .. vocab_size - 1. `special_tokens` maps the strings of the control and chat tokens to their ids.
    """

    def __init__(self, model: SentencePieceModel | JsonModel):
        self.model = model
        self.special_tokens: dict[str, int] = dict(model.special_tokens)
        self.bos_id: int | None = model.bos_id
        self.eos_id: int | None = model.eos_id
        self.unk_id: int | None = model.unk_id
        self.pad_id: int | None = model.pad_id

    @classmethod
    def load(cls, path: str | Path) -> "Tokenizer":
        """Loads `tokenizer.model`, `tokenizer.json` or a GGUF file, or the first of these that a directory has.

        Tokens that other files of the directory add (`added_tokens.json`, `added_tokens_decoder` in
        `tokenizer_config.json`, and `tokenizer.json` beside `tokenizer.model`) belong to it, to a `tokenizer.model` as
        control pieces. UserError if there is no such file, if it is damaged or of another type, or if the files
        disagree.
        """
        path = files_of_tokenizer(path)
        candidates = [path / "tokenizer.model", path / "tokenizer.json"] if path.is_dir() else [path]
        file = next((candidate for candidate in candidates if candidate.is_file()), None)
        if file is None:
            what = "no tokenizer here" if path.is_dir() else "no such file"
            raise UserError(
                f"{path}: {what}; expected a tokenizer.model, a tokenizer.json, a GGUF file or a directory with one"
            )
        check_files(file.parent)
        content = file.read_bytes()
        refuse_pointer(file, content)
        if file.suffix == ".json":
            named = [file.parent / name for name in (SETTINGS_FILE, "special_tokens_map.json")]
            there = next((path for path in named if path.is_file()), None)
            settings = read_json(there, kind=dict) if there else {}
            try:
                added = _added_tokens(file.parent)
                return cls(JsonModel(content.decode("utf-8"), settings=settings, source=str(file), added=added))
            except UnicodeDecodeError:
                raise UserError(f"{file}: not UTF-8; expected the JSON of a BPE tokenizer") from None
        tokenizer = cls.from_sentencepiece(content, source=str(file))
        return _with_added_tokens(tokenizer, path) if path.is_dir() else tokenizer

    @classmethod
    def from_sentencepiece(cls, serialized: bytes, *, source: str = "SentencePiece model") -> "Tokenizer":
        """A tokenizer from the bytes of a `tokenizer.model`; `source` names it in error messages."""
        return cls(SentencePieceModel(serialized, source=source))

    def __repr__(self) -> str:
        return f"Tokenizer({self.model.source}, vocab_size={self.vocab_size}, {self.fingerprint[:12]})"

    @property
    def vocab_size(self) -> int:
        """Number of ids, including control tokens."""
        return len(self.model.pieces)

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 of everything that determines the ids of a text; equal fingerprints mean equal ids."""
        return sha256_of_json(self.model.fingerprint_state())

    def encode(self, text: str, *, bos: bool = False, eos: bool = False, specials: Specials = "text") -> list[int]:
        """Ids of `text`, with `start_id` before and the eos id after it where asked for.

        specials="text" treats the string of a special token as plain text. "parse" turns it into its single id, and
        encodes the sections between special tokens as texts of their own. Parse only text that you wrote yourself: a
        user's text could contain the token that ends a chat turn.
        """
        ids = self.model.encode(text) if specials == "text" else self.model.encode_parsed(text)
        return self._framed(ids, bos=bos, eos=eos)

    def encode_batch(
        self, texts: Iterable[str], *, bos: bool = False, eos: bool = False, specials: Specials = "text"
    ) -> list[list[int]]:
        """`encode` for many texts; specials="text" uses all cores."""
        if specials == "parse":
            return [self.encode(text, bos=bos, eos=eos, specials="parse") for text in texts]
        return [self._framed(ids, bos=bos, eos=eos) for ids in self.model.encode_batch(list(texts))]

    def decode(self, ids: Sequence[int], *, skip_special: bool = False) -> str:
        """Text of `ids`, the inverse of `encode` for both values of `specials`.

        Special tokens become their string, or nothing with `skip_special`. Invalid UTF-8 becomes U+FFFD. ValueError for
        an id outside 0 .. vocab_size - 1.
        """
        ids = [int(index) for index in ids]
        if ids and (min(ids) < 0 or max(ids) >= self.vocab_size):
            raise ValueError(f"ids must lie in 0..{self.vocab_size - 1}; got {min(ids)}..{max(ids)}")
        parts = []
        for special, run in itertools.groupby(ids, key=self.is_special):
            if not special:
                parts.append(self.model.decode(list(run)))
            elif not skip_special:
                parts.extend(self.model.pieces[index] for index in run)
        return "".join(parts)

    def id_to_piece(self, index: int) -> str:
        """The vocabulary's string of an id: `▁` is a space in SentencePiece; byte-level BPE writes bytes as symbols."""
        return self.model.pieces[index]

    def piece_to_id(self, piece: str) -> int | None:
        """The id of a vocabulary string, or None."""
        return self._ids.get(piece)

    def is_special(self, index: int) -> bool:
        """Whether the id is a control, chat or unknown token, which has no text of its own."""
        return self.model.kinds[index].is_special

    def is_byte(self, index: int) -> bool:
        """Whether the id stands for one raw byte."""
        return self.model.kinds[index] is Kind.BYTE

    def is_fallback_byte(self, index: int) -> bool:
        """Whether the id stands for one byte of a character that no piece has; byte-level BPE has no such ids."""
        return self.is_byte(index) and not (isinstance(self.model, JsonModel) and self.model.byte_level)

    def token_bytes(self, index: int) -> bytes:
        """The UTF-8 bytes that an id stands for in the middle of a text; of a special token, its string."""
        piece, kind = self.model.pieces[index], self.model.kinds[index]
        if kind in (Kind.CONTROL, Kind.UNKNOWN, Kind.USER_DEFINED):
            return piece.encode()
        if isinstance(self.model, JsonModel) and self.model.byte_level:
            alphabet = byte_alphabet()
            return bytes(alphabet[character] for character in piece)
        return bytes([int(piece[3:5], 16)]) if kind is Kind.BYTE else piece.replace(SPACE, " ").encode()

    def segment_piece(self, piece: str) -> list[int]:
        """Ids of the text of another tokenizer's piece, where `▁` is a space, without a dummy prefix."""
        return self.model.segment_piece(piece)

    def save(self, directory: str | Path) -> None:
        """Writes the tokenizer files into `directory`, each atomically; leaves other files there alone.

        SentencePiece: `tokenizer.model`, and a `tokenizer.json` that gives the same ids. Byte-level BPE:
        `tokenizer.json`. Both: `tokenizer_config.json` and `special_tokens_map.json`.
        """
        tokenizer_json.save(self.model, Path(directory))

    @functools.cached_property
    def _ids(self) -> dict[str, int]:
        return {piece: index for index, piece in enumerate(self.model.pieces)}

    @property
    def start_id(self) -> int:
        """What stands before a document: the bos token, or the eos token where there is no bos, as in Qwen."""
        return _required(self.eos_id if self.bos_id is None else self.bos_id, "bos or eos", self.model.source)

    def _framed(self, ids: list[int], *, bos: bool, eos: bool) -> list[int]:
        if bos:
            ids = [self.start_id, *ids]
        if eos:
            ids = [*ids, _required(self.eos_id, "eos", self.model.source)]
        return ids


def files_of_tokenizer(path: str | Path) -> Path:
    """The path itself, or for a GGUF file a directory with the files of its tokenizer."""
    path = Path(path)
    if path.is_dir() and any((path / name).is_file() for name in MODEL_FILES):
        return path
    gguf = gguf_at(path)
    return (unpack_tokenizer(gguf) if gguf else None) or path


def directory_of(path: str | Path) -> Path:
    """The directory of a tokenizer that is named by it or by one of its files."""
    path = files_of_tokenizer(path)
    return path if path.is_dir() else path.parent


def _required(index: int | None, name: str, source: str) -> int:
    if index is None:
        raise UserError(f"{source}: the tokenizer has no {name} token; name one in tokenizer_config.json")
    return index


def check_control_tokens(tokens: Sequence[str]) -> None:
    """UserError for a token that is empty or is given twice."""
    for number, token in enumerate(tokens):
        if not token or token in tokens[:number]:
            raise UserError(f"control token {token!r} is {'given twice' if token else 'empty'}; name each once")


def with_control_tokens(tokenizer: Tokenizer, tokens: Sequence[str], *, source: str | None = None) -> Tokenizer:
    """A SentencePiece tokenizer with `tokens` appended as control pieces; tokens that it already has keep their ids.

    UserError if a token is an ordinary piece of the vocabulary, is empty or is given twice.
    """
    check_control_tokens(tokens)
    model = tokenizer.model
    if not isinstance(model, SentencePieceModel):
        raise UserError(f"{model.source}: control tokens can only be added to a SentencePiece model")
    proto = type(model.proto)()
    proto.CopyFrom(model.proto)
    for token in tokens:
        index = tokenizer.piece_to_id(token)
        if index is None:
            proto.pieces.add(piece=token, score=0.0, type=Piece.CONTROL)
            proto.trainer_spec.control_symbols.append(token)
        elif not tokenizer.is_special(index):
            raise UserError(
                f"control token {token!r}: already an ordinary piece of {model.source}; choose another name"
            )
    proto.trainer_spec.vocab_size = len(proto.pieces)
    return Tokenizer.from_sentencepiece(proto.SerializeToString(deterministic=True), source=source or model.source)


def _with_added_tokens(tokenizer: Tokenizer, directory: Path) -> Tokenizer:
    """Appends the tokens that a directory keeps outside its `tokenizer.model`, which all its files must fit."""
    added = {index: token["content"] for index, token in _added_tokens(directory).items()}
    stated: dict[int, str] = dict(added)
    if (file := directory / "tokenizer.json").is_file():
        document = read_json(file, kind=dict)
        try:
            vocabulary = document["model"]["vocab"]
            entries = {int(entry["id"]): str(entry["content"]) for entry in document.get("added_tokens") or ()}
            stated = {
                **({} if isinstance(vocabulary, list) else {int(i): str(p) for p, i in vocabulary.items()}),
                **entries,
                **added,
            }
        except (AttributeError, TypeError, ValueError, KeyError):
            raise UserError(f"{file}: not a tokenizer.json; remove it, or tokenizer.model beside it") from None
        added = entries | added
    size = tokenizer.vocab_size
    for index, piece in sorted(stated.items()):
        own = tokenizer.id_to_piece(index) if 0 <= index < size else added.get(index)
        if own != piece:
            raise UserError(
                f"{directory}: id {index} is {own!r} in tokenizer.model and {piece!r} in the JSON files beside it; "
                "remove the files that do not belong to the weights"
            )
    extra = sorted((index, token) for index, token in added.items() if index >= size)
    if [index for index, _ in extra] != list(range(size, size + len(extra))):
        raise UserError(
            f"{directory}: added tokens {json.dumps(extra, ensure_ascii=False)} do not continue the "
            f"{size} pieces of tokenizer.model; give the path of tokenizer.json instead"
        )
    return with_control_tokens(tokenizer, [token for _, token in extra]) if extra else tokenizer


_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


def _added_tokens(directory: Path) -> dict[int, dict[str, Any]]:
    """The tokens of `added_tokens.json` and `tokenizer_config.json`, by id, in the form of `added_tokens`."""
    added: dict[int, dict[str, Any]] = {}
    plain = dict.fromkeys(_FLAGS, False) | {"special": True}
    file = directory / "added_tokens.json"
    try:
        if file.is_file():
            added.update({int(i): {"content": str(t), **plain} for t, i in read_json(file, kind=dict).items()})
        if (file := directory / SETTINGS_FILE).is_file():
            for index, token in (read_json(file, kind=dict).get("added_tokens_decoder") or {}).items():
                flags = {flag: bool(token.get(flag, plain[flag])) for flag in _FLAGS}
                added[int(index)] = {"content": str(token["content"]), **flags}
    except (AttributeError, TypeError, ValueError, KeyError):
        raise UserError(f"{file}: added tokens of an unknown form; expected ids and their strings") from None
    return added
