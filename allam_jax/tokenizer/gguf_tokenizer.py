"""The tokenizer inside a GGUF file: unpacks it as the files of a tokenizer directory, and writes it.

A GGUF file has the vocabulary, the merges or scores, the chat template and the tokens that end an answer in its
metadata. `unpack_tokenizer` writes them once into the cache, under a hash of what they are made of, so that all else
reads files.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from absl import logging

from allam_jax.checksums import FILE_LIST, hash_json, write_listed
from allam_jax.errors import UserError
from allam_jax.files import CACHE_VARIABLE, atomic_path, cache_directory, json_text
from allam_jax.gguf_file import GgufFile, read_gguf
from allam_jax.tokenizer import tokenizer_json
from allam_jax.tokenizer.json_model import JsonModel, byte_alphabet
from allam_jax.tokenizer.kinds import Kind
from allam_jax.tokenizer.pre_tokenizers import name_of_pre_tokenizer, pre_tokenizer_named
from allam_jax.tokenizer.sentencepiece_model import ModelProto, SentencePieceModel
from allam_jax.tokenizer.tokenizer_files import GENERATION_FILE, SETTINGS_FILE

if TYPE_CHECKING:
    from gguf import GGUFWriter

_KEY = "tokenizer.ggml."
_VERSION = 1  # of the files that are unpacked: raise it when they change
# llama.cpp's types of tokens; SentencePiece has the same numbers.
_TYPES = {
    Kind.NORMAL: 1,
    Kind.UNKNOWN: 2,
    Kind.CONTROL: 3,
    Kind.USER_DEFINED: 4,
    Kind.UNUSED: 5,
    Kind.BYTE: 6,
    Kind.RETIRED: 5,
}
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = range(1, 7)
_ENDS = ("eos", "eot", "eom")  # llama.cpp ends an answer at each of them
_BYTE_LEVEL, _SENTENCEPIECE = "gpt2", "llama"


# -- Reading -----------------------------------------------------------------------------------------------------------


def unpack_tokenizer(path: Path) -> Path | None:
    """A directory in the cache with the files of the tokenizer of a GGUF file; None if it has no tokenizer.

    UserError if the file is damaged, its tokenizer is of another kind, or the cache cannot be written.
    """
    file = read_gguf(path)
    if f"{_KEY}model" not in file.metadata:
        return None
    keys = [key for key in file.metadata if key.startswith("tokenizer.")]
    values = {key: _plain(file.metadata[key]) for key in keys}
    directory = cache_directory() / f"gguf-tokenizer-{hash_json([_VERSION, values])}"
    if (directory / FILE_LIST).is_file():
        return directory
    try:
        with atomic_path(directory) as temporary:
            temporary.mkdir()
            _unpack(file, temporary)
    except OSError as error:
        raise UserError(
            f"{directory}: cannot write the cache ({error.strerror}); set {CACHE_VARIABLE} to another directory"
        ) from None
    return directory


def _unpack(file: GgufFile, directory: Path) -> None:
    kind = file.get(f"{_KEY}model", str)
    if kind not in (_BYTE_LEVEL, _SENTENCEPIECE):
        raise UserError(
            f"{file.path}: a tokenizer of the kind {kind!r}; expected {_BYTE_LEVEL} (byte-level BPE) or "
            f"{_SENTENCEPIECE} (SentencePiece BPE)"
        )
    tokens = _tokens(file)
    types = _array(file, "token_type", size=len(tokens), default=[_NORMAL] * len(tokens))
    ids = {name: _token_id(file, f"{_KEY}{key}_token_id", len(tokens)) for name, key in _NAMED.items()}
    settings: dict[str, Any] = {f"{name}_token": tokens[index] for name, index in ids.items() if index is not None}
    if kind == _BYTE_LEVEL:
        adds_bos = file.get(f"{_KEY}add_bos_token", bool, False) and ids["bos"] is not None
        document = _byte_level(file, tokens, types, bos=ids["bos"] if adds_bos else None)
        settings |= {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
        settings["model_input_names"] = ["input_ids", "attention_mask"]
        tokenizer_json.save(JsonModel(json_text(document), settings=settings, source=str(file.path)), directory)
    else:
        model = SentencePieceModel(_sentencepiece(file, tokens, types, ids), source=str(file.path))
        try:
            tokenizer_json.save(model, directory)
        except UserError as error:
            logging.warning("%s; exports of it have a tokenizer.model alone", error)
            write_listed(directory, {"tokenizer.model": model.serialized(), SETTINGS_FILE: _json(settings)})
        settings = tokenizer_json.tokenizer_config(model)
    if template := file.get("tokenizer.chat_template", str, ""):
        write_listed(directory, {SETTINGS_FILE: _json(settings | {"chat_template": template})})
    ends = [_token_id(file, f"{_KEY}{name}_token_id", len(tokens)) for name in _ENDS]
    stated = list(dict.fromkeys(index for index in ends if index is not None))
    generation: dict[str, Any] = {f"{name}_token_id": ids[name] for name in ("bos", "pad") if ids[name] is not None}
    if stated:
        generation["eos_token_id"] = stated if len(stated) > 1 else stated[0]
    write_listed(directory, {GENERATION_FILE: _json(generation)})


_NAMED = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}


def _tokens(file: GgufFile) -> list[str]:
    found = file.get(f"{_KEY}tokens", list)
    if not found or not all(isinstance(token, str) for token in found):
        raise UserError(f"{file.path}: {_KEY}tokens is no list of strings; fetch the file again")
    return found


def _array(file: GgufFile, name: str, *, size: int, default: Any = ...) -> Sequence[Any]:
    found = file.metadata.get(f"{_KEY}{name}", default)
    if found is ... or isinstance(found, str) or not hasattr(found, "__len__") or len(found) != size:
        raise UserError(f"{file.path}: {_KEY}{name} has not one value for each of the {size} tokens; fetch it again")
    return _plain(found)


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray) else value


def _token_id(file: GgufFile, key: str, size: int) -> int | None:
    index = file.get(key, int, None)
    if index is not None and not 0 <= index < size:
        raise UserError(f"{file.path}: {key} = {index}, but there are {size} tokens; fetch the file again")
    return index


def _byte_level(file: GgufFile, tokens: Sequence[str], types: Sequence[int], *, bos: int | None) -> dict[str, Any]:
    """The content of a tokenizer.json."""
    where = str(file.path)
    merges = [tuple(merge.split(" ")) for merge in file.get(f"{_KEY}merges", list)]
    pre_tokenizer, ignores_merges = pre_tokenizer_named(file.get(f"{_KEY}pre", str, "gpt-2"), where=where)
    spelled = {byte: character for character, byte in byte_alphabet().items()}
    vocabulary: dict[str, int] = {}
    for index, (token, kind) in enumerate(zip(tokens, types, strict=True)):
        if kind in (_NORMAL, _BYTE) and not spelled_in_bytes(token):  # llama.cpp writes some as they look
            token = "".join(spelled[byte] for byte in token.encode())
        if kind != _UNUSED:  # rows that belong to no token
            vocabulary.setdefault(token, index)
    if any(len(merge) != 2 or not {*merge, "".join(merge)} <= vocabulary.keys() for merge in merges):
        raise UserError(f"{where}: {_KEY}merges does not fit {_KEY}tokens; fetch the file again")
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": index,
                "content": tokens[index],
                **dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False),
                "special": kind != _USER_DEFINED,
            }
            for index, kind in enumerate(types)
            if kind in (_UNKNOWN, _CONTROL, _USER_DEFINED)
        ],
        "normalizer": None,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": None if bos is None else tokenizer_json.bos_processor(tokens[bos], bos),
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": ignores_merges,
            "vocab": vocabulary,
            "merges": [list(merge) for merge in merges],
        },
    }


def spelled_in_bytes(token: str) -> bool:
    """Whether a token consists of the characters with which byte-level BPE writes bytes."""
    return byte_alphabet().keys() >= set(token)


def _sentencepiece(file: GgufFile, tokens: Sequence[str], types: Sequence[int], ids: Mapping[str, int | None]) -> bytes:
    """The bytes of a tokenizer.model."""
    scores = _array(file, "scores", size=len(tokens))
    ids = {**ids, "unk": ids["unk"] if ids["unk"] is not None else types.index(_UNKNOWN) if _UNKNOWN in types else 0}
    proto = ModelProto()
    trainer, normalizer = proto.trainer_spec, proto.normalizer_spec
    for index, (token, score, kind) in enumerate(zip(tokens, scores, types, strict=True)):
        if index == ids["unk"]:
            kind = _UNKNOWN
        elif index in (ids["bos"], ids["eos"]) and kind in (_NORMAL, _USER_DEFINED):
            kind = _CONTROL  # as llama.cpp takes them
        proto.pieces.add(piece=token, score=score, type=kind)
    for name, own in ids.items():
        setattr(trainer, f"{name}_id", -1 if own is None else own)
        if own is not None:
            setattr(trainer, f"{name}_piece", tokens[own])
    trainer.model_type, trainer.vocab_size = 2, len(tokens)
    trainer.byte_fallback = _BYTE in types
    normal = [token for token, kind in zip(tokens, types, strict=True) if kind == _NORMAL]
    trainer.split_digits = not any(len(token) > 1 and token.isdigit() for token in normal)
    trainer.allow_whitespace_only_pieces = "▁▁" in normal
    normalizer.name = "identity"
    normalizer.add_dummy_prefix = file.get(f"{_KEY}add_space_prefix", bool, True)
    normalizer.remove_extra_whitespaces = file.get(f"{_KEY}remove_extra_whitespaces", bool, False)
    if (charsmap := file.metadata.get(f"{_KEY}precompiled_charsmap")) is not None:
        normalizer.precompiled_charsmap = bytes(charsmap)
    return proto.SerializeToString(deterministic=True)


def _json(value: Any) -> bytes:
    return f"{json_text(value, indent=2)}\n".encode()


# -- Writing -----------------------------------------------------------------------------------------------------------


def write_tokenizer(
    writer: "GGUFWriter",
    model: SentencePieceModel | JsonModel,
    *,
    rows: int,
    generation: Mapping[str, Any],
    template: str | None,
) -> None:
    """Adds a tokenizer to the metadata of a GGUF file.

    Args:
        writer: of the file.
        model: the tokenizer.
        rows: of the embedding; those without a token get a name that no text has.
        generation: the content of `generation_config.json`.
        template: the chat template, if there is one.

    Raises:
        UserError: llama.cpp could not give the same ids.
    """
    if isinstance(model, JsonModel):
        if not model.byte_level:
            raise UserError(
                f"{model.source}: a SentencePiece vocabulary as a tokenizer.json; a GGUF file needs its scores: "
                "put the tokenizer.model beside it"
            )
        writer.add_tokenizer_model(_BYTE_LEVEL)
        writer.add_tokenizer_pre(name_of_pre_tokenizer(model.document, where=model.source))
        merges = model.document["model"]["merges"]
        writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges])
        adds_bos = "SpecialToken" in json_text(model.document.get("post_processor"))
    else:
        tokenizer_json.check_expressible(model)  # llama.cpp, too, knows no normaliser and no ties
        writer.add_tokenizer_model(_SENTENCEPIECE)
        writer.add_tokenizer_pre("default")
        writer.add_token_scores([piece.score for piece in model.proto.pieces] + [0.0] * (rows - len(model.pieces)))
        writer.add_add_space_prefix(model.proto.normalizer_spec.add_dummy_prefix)
        adds_bos = model.bos_id is not None
    # llama.cpp joins to every token that it has, whatever its type: what text must not reach cannot keep its string.
    unreachable = (Kind.UNUSED, Kind.RETIRED)
    kinds = [*model.kinds, *[Kind.UNUSED] * (rows - len(model.kinds))]
    written = [f"[UNUSED{index}]" if kind in unreachable else model.pieces[index] for index, kind in enumerate(kinds)]
    # In byte-level BPE every text is of bytes, and its unknown token is a control token.
    as_written = {Kind.BYTE: Kind.NORMAL, Kind.UNKNOWN: Kind.CONTROL} if isinstance(model, JsonModel) else {}
    writer.add_token_list(written)
    writer.add_token_types([_TYPES[as_written.get(kind, kind)] for kind in kinds])
    writer.add_add_bos_token(adds_bos)
    writer.add_add_eos_token(False)
    ends = generation.get("eos_token_id")
    ends = ends if isinstance(ends, list) else [] if ends is None else [ends]
    if len(ends) > len(_ENDS):
        logging.warning(
            "llama.cpp ends an answer at %d tokens at most; %s are left out", len(_ENDS), ends[len(_ENDS) :]
        )
    for add, index in (
        (writer.add_bos_token_id, model.bos_id),
        (writer.add_unk_token_id, model.unk_id),
        (writer.add_pad_token_id, generation.get("pad_token_id", model.pad_id)),
        *zip((writer.add_eos_token_id, writer.add_eot_token_id, writer.add_eom_token_id), ends, strict=False),
    ):
        if index is not None:
            add(index)
    if template:
        writer.add_chat_template(template)
