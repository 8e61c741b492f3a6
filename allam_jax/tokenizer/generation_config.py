"""What a model says of its use beside its weights: the tokens that end an answer, defaults of sampling, chat template.

It lies with the tokenizer and goes where that goes: from an imported Hugging Face directory through runs and weights
directories into exports.
"""

from pathlib import Path
from typing import Any

from absl import logging

from allam_jax.checksums import read_listed, write_listed
from allam_jax.errors import UserError
from allam_jax.files import json_text
from allam_jax.tokenizer.chat_template import ChatTemplate, stated_template, stored_template
from allam_jax.tokenizer.tokenizer import Tokenizer
from allam_jax.tokenizer.tokenizer_files import (
    COPY_AGAIN,
    GENERATION_FILE,
    MORE_TEMPLATES,
    SETTINGS_FILE,
    TEMPLATE_FILE,
)
from allam_jax.tokenizer.tokenizer_json import CHAT_END, CHAT_TEMPLATE


def read_generation(directory: Path) -> dict[str, Any]:
    """The content of `generation_config.json`, with the token ids of `config.json` that it lacks; {} without both.

    UserError for ids that are no whole numbers.
    """
    found: dict[str, Any] = {}
    for name in (GENERATION_FILE, "config.json"):
        if not (file := Path(directory) / name).is_file():
            continue
        values = read_listed(Path(directory), name, remedy=COPY_AGAIN)
        ids = {key: values[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id") if key in values}
        for key, value in ids.items():
            stated = value if isinstance(value, list) else [] if value is None else [value]
            if any(isinstance(index, bool) or not isinstance(index, int) for index in stated):
                raise UserError(f"{file}: {key} = {value!r}; expected a token id, or a list of them")
        found = (values if name == GENERATION_FILE else {key: i for key, i in ids.items() if i is not None}) | found
    found.pop("_from_model_config", None)  # transformers would then prefer config.json
    return found


def complete_generation(tokenizer: Tokenizer, directory: Path) -> dict[str, Any]:
    """The `generation_config.json` of an export: what the model says, and what its tokenizer says where it is silent.

    The end of a turn of our own chat template ends an answer. Without a token for padding, the unknown token pads, or
    else the first that ends an answer.
    """
    found = read_generation(directory)
    named = {"bos": tokenizer.bos_id, "eos": tokenizer.eos_id, "pad": tokenizer.pad_id}
    for name, index in named.items():
        if found.get(f"{name}_token_id") is None and index is not None:
            found[f"{name}_token_id"] = index
    ends = _as_list(found.get("eos_token_id"))
    chat_end = tokenizer.special_tokens.get(CHAT_END)
    if stated_template(directory) == CHAT_TEMPLATE and chat_end is not None and chat_end not in ends:
        ends.append(chat_end)
        found["eos_token_id"] = ends if len(ends) > 1 else ends[0]
    if found.get("pad_token_id") not in range(tokenizer.vocab_size):  # old models state -1
        found.pop("pad_token_id", None)
    if "pad_token_id" not in found and (tokenizer.unk_id is not None or ends):
        found["pad_token_id"] = ends[0] if tokenizer.unk_id is None else tokenizer.unk_id
    return found


def stop_ids(tokenizer: Tokenizer, directory: Path) -> tuple[int, ...]:
    """The tokens of which each ends an answer."""
    return tuple(_as_list(complete_generation(tokenizer, directory).get("eos_token_id")))


def keep_conversation(base: Path, *, to: Path, vocab_size: int) -> None:
    """Copies what the model of the base tokenizer says into the directory `to` of one that keeps the base's ids.

    An id beyond the base's `vocab_size` pieces (Llama 2 once padded with such a one) is left out, with a warning: it
    would be a new piece of `to`.
    """
    contents: dict[str, bytes] = {}
    if generation := _of_pieces(read_generation(base), count=vocab_size, base=base):
        contents[GENERATION_FILE] = _as_bytes(generation)
    if template := stated_template(base):
        settings = read_listed(to, SETTINGS_FILE, remedy=COPY_AGAIN)
        contents[SETTINGS_FILE] = _as_bytes(settings | {"chat_template": template})
    if more := sorted(Path(base).glob(MORE_TEMPLATES)):
        files = [path for path in (Path(base) / TEMPLATE_FILE, *more) if path.is_file()]
        contents |= {path.relative_to(base).as_posix(): path.read_bytes() for path in files}
    if contents:
        write_listed(to, contents)


def learned_conversation(template: ChatTemplate, *, tokenizer: Tokenizer, directory: Path) -> dict[str, bytes]:
    """The files beside a tokenizer, by name, that differ once a model has learned conversations in `template`.

    They hold the template, and the token at the end of its turns as one that ends an answer. {} if the tokenizer's
    `directory` says so already.
    """
    contents: dict[str, bytes] = {}
    if stored_template(directory) != template.source:
        contents[TEMPLATE_FILE] = template.source.encode()
        if (directory / SETTINGS_FILE).is_file():  # older versions of transformers read this one alone
            settings = read_listed(directory, SETTINGS_FILE, remedy=COPY_AGAIN)
            contents[SETTINGS_FILE] = _as_bytes(settings | {"chat_template": template.source})
    stated = read_generation(directory)
    ends = _as_list(complete_generation(tokenizer, directory).get("eos_token_id"))
    if more := [index for index in template.end_ids() if index not in ends]:
        contents[GENERATION_FILE] = _as_bytes(stated | {"eos_token_id": [*ends, *more]})
    return contents


def _of_pieces(generation: dict[str, Any], *, count: int, base: Path) -> dict[str, Any]:
    """Without the token ids that a tokenizer of `count` pieces does not have."""
    found = dict(generation)
    for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
        stated = _as_list(generation.get(key))
        known = [index for index in stated if index in range(count)]
        if len(known) < len(stated):
            logging.warning(
                "%s: %s = %s: not among the tokenizer's %d ids; left out", base, key, generation[key], count
            )
            found |= {key: known if isinstance(generation[key], list) else None}
        if found.get(key) in (None, []):
            found.pop(key, None)
    return found


def name_pad_token(directory: Path, token: str) -> None:
    """Writes the token for padding into a `tokenizer_config.json` that names none, so that batches can be padded."""
    if not (directory / SETTINGS_FILE).is_file():
        return
    settings = read_listed(directory, SETTINGS_FILE, remedy=COPY_AGAIN)
    if not settings.get("pad_token"):
        write_listed(directory, {SETTINGS_FILE: _as_bytes(settings | {"pad_token": token})})


def _as_list(ids: int | list[int] | None) -> list[int]:
    return [] if ids is None else list(ids) if isinstance(ids, list) else [ids]


def _as_bytes(value: Any) -> bytes:
    return f"{json_text(value, indent=2)}\n".encode()
