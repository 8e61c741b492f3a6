"""The `tokenizer.json` backend: byte-level BPE (Llama 3, SmolLM2) through the tokenizers library."""

import copy
import functools
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from absl import logging

from allam_jax.errors import UserError
from allam_jax.tokenizer.kinds import Kind, special_tokens

_MOST_IDS = 10_000_000  # the largest vocabularies have some 300,000
_BYTE_PIECE = re.compile("<0x[0-9A-F]{2}>")


class RepeatedKey(ValueError):
    """An object of JSON has a key twice. Readers differ in which value they take."""


class JsonModel:
    """Text <-> ids with a BPE `tokenizer.json`, of which `serialized` is the text.

    `settings` is the content of `tokenizer_config.json`, which names the bos, eos, unk and pad tokens. `source` names
    the model in error messages. `moved`: tokens with another id than the file states -> the stated and the actual id.
    `added` are tokens that other files add, by id, in the form of `added_tokens`.
    UserError if the text is no tokenizer.json, its model is not BPE, or an added token has the id of another.
    """

    def __init__(
        self,
        serialized: str,
        *,
        settings: Mapping[str, Any],
        source: str,
        added: Mapping[int, Mapping[str, Any]] = MappingProxyType({}),
    ):
        import tokenizers  # here, because the import takes time and SentencePiece models do not need it

        try:
            self.document = json.loads(serialized, object_pairs_hook=_without_repeats)
            model = self.document["model"]
            model_type = model.get("type", "BPE" if "merges" in model else None)
        except RepeatedKey as error:
            raise UserError(f"{source}: the key {error} occurs twice in one object; which of them counts?") from None
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            raise UserError(f"{source}: not a tokenizer.json; expected JSON with a 'model' of type BPE") from None
        if model_type != "BPE":
            raise UserError(f"{source}: a tokenizer of type {model_type}; expected BPE")
        if added:
            serialized = self._with_added(added, source=source)
        try:
            self._plain = tokenizers.Tokenizer.from_str(serialized)
        except Exception as error:  # the library raises Exception itself
            raise UserError(
                f"{source}: the tokenizers library cannot read it ({' '.join(str(error).split())[:200]})"
            ) from None
        self._plain.no_truncation()
        self._plain.no_padding()
        self._plain.encode_special_tokens = True
        self.source, self.settings = source, dict(settings)
        self._mark_named(tokenizers.AddedToken)
        vocabulary = self._plain.get_vocab(with_added_tokens=True)
        if not vocabulary:
            raise UserError(f"{source}: the vocabulary is empty; expected BPE pieces and merges")
        size = max(vocabulary.values()) + 1
        if size > _MOST_IDS:
            raise UserError(f"{source}: has the id {size - 1:,} for {len(vocabulary):,} pieces; the file is damaged")
        self.pieces = [""] * size
        self.kinds = [Kind.UNUSED] * size  # for the ids without a piece
        alphabet = byte_alphabet()
        self.byte_level = '"ByteLevel"' in serialized  # the characters of pieces stand for bytes
        for piece, index in vocabulary.items():
            is_byte = piece in alphabet if self.byte_level else bool(_BYTE_PIECE.fullmatch(piece))
            self.pieces[index], self.kinds[index] = piece, Kind.BYTE if is_byte else Kind.NORMAL
        stated = {entry["content"]: entry["id"] for entry in self.document.get("added_tokens") or ()}
        self.moved = {token: (i, vocabulary.get(token)) for token, i in stated.items() if vocabulary.get(token) != i}
        if self.moved:
            logging.warning("%s: %s, here and in transformers", source, self._said_of_moved())
        for index, token in self._plain.get_added_tokens_decoder().items():
            self.kinds[index] = Kind.CONTROL if token.special else Kind.USER_DEFINED
        self.unk_id = vocabulary.get(model.get("unk_token") or self._named("unk_token"))
        if self.unk_id is not None:
            self.kinds[self.unk_id] = Kind.UNKNOWN
        self.bos_id, self.eos_id, self.pad_id = (
            vocabulary.get(self._named(key)) for key in ("bos_token", "eos_token", "pad_token")
        )
        self.special_tokens = special_tokens(self.pieces, self.kinds)

    def __reduce__(self):
        return functools.partial(JsonModel, settings=self.settings, source=self.source), (self.serialized(),)

    def serialized(self) -> str:
        """The text of `tokenizer.json`."""
        return json.dumps(self.document, ensure_ascii=False, indent=2) + "\n"

    def encode(self, text: str) -> list[int]:
        """Ids of `text`; the string of a special token in it is plain text."""
        return self._plain.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` for many texts, on all cores."""
        return [e.ids for e in self._plain.encode_batch_fast(list(texts), add_special_tokens=False)]

    def encode_parsed(self, text: str) -> list[int]:
        """Ids of `text`, in which the string of every special token becomes its id."""
        return self._parsing.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids, of which none is a special token; invalid UTF-8 becomes U+FFFD."""
        return self._plain.decode(list(ids), skip_special_tokens=False)

    def segment_piece(self, piece: str) -> list[int]:
        """Ids of a piece's text: the merges are applied to its symbols, also across word borders."""
        return [token.id for token in self._plain.model.tokenize(piece)]

    def words_of(self, text: str) -> list[str]:
        """The words within which merges join, as the vocabulary writes them."""
        plain = self._plain
        text = plain.normalizer.normalize_str(text) if plain.normalizer else text
        return [word for word, _ in plain.pre_tokenizer.pre_tokenize_str(text)] if plain.pre_tokenizer else [text]

    def extended(self, merges: Sequence[tuple[str, str]], *, control_tokens: Sequence[str] = ()) -> "JsonModel":
        """The same tokenizer with further merges after its own, each of which makes a new piece, and control tokens.

        Control tokens that it already has keep their ids. UserError where ids are not those that the file states.
        """
        document = copy.deepcopy(self.document)
        model, added = document["model"], list(document.get("added_tokens") or ())
        if self.moved:
            raise UserError(
                f"{self.source}: {self._said_of_moved()}; load it with transformers, save it, and take that"
            )
        # As pieces they keep their ids: the library numbers added tokens that the vocabulary lacks anew, behind it.
        vocabulary = model["vocab"] | {entry["content"]: entry["id"] for entry in added}
        new = [first + second for first, second in merges]
        new_controls = [token for token in control_tokens if token not in vocabulary]
        ids = {piece: index for index, piece in enumerate([*new, *new_controls], start=len(self.pieces))}
        model["vocab"] = vocabulary | ids
        own = model["merges"]
        as_text = bool(own) and isinstance(own[0], str)
        model["merges"] = own + [" ".join(merge) if as_text else list(merge) for merge in merges]
        plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        document["added_tokens"] = added + [
            {"id": ids[token], "content": token, **plain, "special": True} for token in new_controls
        ]
        return JsonModel(json.dumps(document, ensure_ascii=False), settings=self.settings, source=self.source)

    def trained_anew(self, texts: Iterable[str], *, pieces: int) -> "JsonModel":
        """A tokenizer that cuts words as this one does, with the 256 bytes and `pieces` pieces learned from texts."""
        import tokenizers

        tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
        tokenizer.normalizer, tokenizer.pre_tokenizer = self._plain.normalizer, self._plain.pre_tokenizer
        tokenizer.decoder = self._plain.decoder
        trainer = tokenizers.trainers.BpeTrainer(
            vocab_size=256 + pieces, initial_alphabet=sorted(byte_alphabet()), show_progress=False
        )
        tokenizer.train_from_iterator(texts, trainer)
        return JsonModel(tokenizer.to_str(), settings={}, source=f"{self.source}, trained anew")

    def fingerprint_state(self) -> object:
        """JSON-able value of everything that determines the ids of a text."""
        keys = ("model", "normalizer", "pre_tokenizer", "added_tokens")
        # A pad token that is another's is written into exports of tokenizers that have none; it changes no ids.
        pad_id = None if self.pad_id in (self.bos_id, self.eos_id, self.unk_id) else self.pad_id
        return {**{key: self.document.get(key) for key in keys}, "special": [self.bos_id, self.eos_id, pad_id]}

    def _with_added(self, added: Mapping[int, Mapping[str, Any]], *, source: str) -> str:
        """Adds those of the tokens to the document that it lacks; returns its text."""
        entries = list(self.document.get("added_tokens") or ())
        known = {index: piece for piece, index in self.document["model"].get("vocab", {}).items()}
        known |= {entry["id"]: entry["content"] for entry in entries}
        for index, token in sorted(added.items()):
            if known.setdefault(index, token["content"]) != token["content"]:
                raise UserError(
                    f"{source}: id {index} is {known[index]!r} there and {token['content']!r} in the files beside it; "
                    "remove the file that does not belong to the weights"
                )
        stated = {entry["id"] for entry in entries}
        in_vocabulary = set(self.document["model"].get("vocab", {}).values())
        self.document["added_tokens"] = entries + [
            {"id": index, **token} for index, token in sorted(added.items()) if index not in stated | in_vocabulary
        ]
        return json.dumps(self.document, ensure_ascii=False)

    def _said_of_moved(self) -> str:
        token, (stated, index) = next(iter(self.moved.items()))
        return f"token {token!r} has the id {index} and not {stated}, as stated: not every id before that has a piece"

    @functools.cached_property
    def _parsing(self):
        # A second object, because the library stores "special tokens are plain text" in the tokenizer.
        tokenizer = copy.deepcopy(self._plain)
        tokenizer.encode_special_tokens = False
        return tokenizer

    def _mark_named(self, added_token: Callable[..., Any]) -> None:
        """Makes the tokens that begin and end documents special, as transformers does where the file does not say so.

        UserError for one that is an ordinary piece: any text could then begin or end a document.
        """
        stated = {token.content for token in self._plain.get_added_tokens_decoder().values()}
        for key in ("bos_token", "eos_token"):
            name = self._named(key)
            index = self._plain.token_to_id(name)
            if index is None or name in stated:
                continue
            if self.encode(self.decode([index])) == [index]:
                raise UserError(
                    f"{self.source}: {key} of tokenizer_config.json is {name!r}, an ordinary piece that texts become; "
                    "name a token of its own there"
                )
            self._plain.add_special_tokens([added_token(name, special=True, normalized=False)])

    def _named(self, key: str) -> str:
        token = self.settings.get(key)
        name = (token.get("content") if isinstance(token, Mapping) else token) or ""
        if not isinstance(name, str):
            raise UserError(f"{self.source}: {key} of tokenizer_config.json is {name!r}; expected a string")
        return name


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        counts = Counter(key for key, _ in pairs)
        raise RepeatedKey(repr(counts.most_common(1)[0][0])[:60])
    return found


@functools.cache
def byte_alphabet() -> dict[str, int]:
    """The 256 printable characters with which byte-level BPE writes bytes (as in GPT-2): character -> byte."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(256) if byte not in printable]
    return {chr(b): b for b in printable} | {chr(256 + n): byte for n, byte in enumerate(rest)}
