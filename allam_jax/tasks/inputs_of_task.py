"""The files that a config's task reads: what lies at the paths of its sections, except stages of the same recipe."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from allam_jax.corpus.found_files import DATASET_FILE, find_files
from allam_jax.errors import UserError
from allam_jax.gguf_file import gguf_at
from allam_jax.inputs import InputFiles, look
from allam_jax.settings import Section, Settings, fields_of
from allam_jax.tasks.registry import settings_of, task_named


def inputs_of(config: ConfigDict) -> dict[str, InputFiles]:
    """Dotted key of a path -> the files that are read there. Paths that begin with `@`, and empty ones, are left out.

    What is not there has no files: the task itself says so.
    """
    return inputs_of_settings(settings_of(config))


def inputs_of_settings(settings: Settings) -> dict[str, InputFiles]:
    """`inputs_of` for a config that has been read."""
    found: dict[str, InputFiles] = {}
    for key, kind, path, owner in _named(settings):
        try:
            files = _LISTED[kind](Path(path), owner)
        except UserError:
            files = []
        found[key] = look(path if path.is_dir() else _above(path), files)
    return found


def check_named(config: ConfigDict, *, made: Sequence[Path], opened: set[Path]) -> None:
    """UserError for the first path of a config at which its task will find nothing that it reads, or can read.

    Looks which files there are, and opens tokenizers and models of Hugging Face without reading their values.

    Args:
        config: of one task.
        made: directories that the recipe itself writes; nothing needs to be there yet.
        opened: tokenizers and models that could be opened for an earlier stage; gets those of this one.
    """
    for key, kind, path, owner in _named(settings_of(config)):
        if any(path.absolute().is_relative_to(directory.absolute()) for directory in made):
            continue
        try:
            there = any(file.is_file() for file in _LISTED[kind](path, owner))
            if there and kind in _OPENED and path not in opened:
                _OPENED[kind](path)
                opened.add(path)
        except UserError as error:
            raise UserError(f"config.{key}: {error}") from None
        if not there and kind not in ("stage", "template"):
            found = "holds no files that this key reads" if path.exists() else "no such file or directory"
            raise UserError(f"config.{key}: {path}: {found}; give the path of what is there")


def _named(settings: Settings) -> Iterator[tuple[str, str, Path, Any]]:
    """Key, kind, path and the section that holds it, for every path that is given and is no reference to a stage."""
    for cls in task_named(settings.task).sections:
        holder = getattr(settings, cls.section_name) if cls.section_name else settings
        for key, kind, path, owner in _paths(cls, holder, prefix=cls.section_name):
            if path and not path.startswith("@"):
                yield key, kind, Path(path), owner


def _paths(cls: type[Section], holder: Any, *, prefix: str) -> Iterator[tuple[str, str, str, Any]]:
    """Key, kind, path and the section that holds it, for every path below a section."""
    for field, _ in fields_of(cls):
        value, key = getattr(holder, field.name), f"{prefix}.{field.name}".lstrip(".")
        kind = field.metadata.get("path")
        named = value.items() if isinstance(value, Mapping) else [("", value)]
        for name, item in named:
            inner = f"{key}.{name}".rstrip(".")
            if isinstance(item, Section):
                yield from _paths(type(item), item, prefix=inner)
            elif kind:
                yield inner, kind, item, holder


def _above(path: Path) -> Path:
    """The nearest folder above a file or a pattern."""
    while not path.is_dir():
        path = path.parent
    return path


def _files(path: Path, owner: Any) -> list[Path]:
    if not path.is_dir():
        return [path]
    found = [file for file in path.rglob("*") if file.is_file()]
    return sorted(file for file in found if not any(part.startswith(".") for part in file.relative_to(path).parts))


def _texts(path: Path, owner: Any) -> list[Path]:
    return _files(path, owner) if (path / DATASET_FILE).is_file() else find_files(str(path)).files


def _chats(path: Path, owner: Any) -> list[Path]:
    from allam_jax.alignment.chat_files import chat_files  # here, because it imports pyarrow

    return chat_files(str(path))


def _tokenizer(path: Path, owner: Any) -> list[Path]:
    from allam_jax.tokenizer.tokenizer_files import MODEL_FILES, MORE_TEMPLATES, TOKENIZER_FILES

    named = [path / name for name in TOKENIZER_FILES]
    if path.is_dir() and not any((path / name).is_file() for name in MODEL_FILES) and (gguf := gguf_at(path)):
        return [gguf]
    return [*named, *sorted(path.glob(MORE_TEMPLATES))] if path.is_dir() else [path]


def _model(path: Path, owner: Any) -> list[Path]:
    from allam_jax.training.load import places_of_model, what_is_there  # here, because it imports JAX

    places = places_of_model(path, steps=getattr(owner, "steps", ()))
    if not places:
        raise UserError(what_is_there(path))
    return [file for place in places for file in _files(place, owner)]


def _template(path: Path, owner: Any) -> list[Path]:
    """A file; the task knows the names of those that are none."""
    return [path] if path.is_file() else []


def _nothing(path: Path, owner: Any) -> list[Path]:
    """A stage's directory, whose `result.json` the task reads and checks."""
    return []


_LISTED: dict[str, Callable[[Path, Any], list[Path]]] = {
    "files": _files,
    "texts": _texts,
    "chats": _chats,
    "tokenizer": _tokenizer,
    "model": _model,
    "template": _template,
    "stage": _nothing,
}


def _open_tokenizer(path: Path) -> None:
    from allam_jax.tokenizer.tokenizer import Tokenizer

    Tokenizer.load(path)


def _open_model(path: Path) -> None:
    from allam_jax.training.load import is_foreign  # here, because it imports JAX
    from allam_jax.weights.huggingface import open_huggingface

    if is_foreign(path):
        open_huggingface(path)


_OPENED: dict[str, Callable[[Path], None]] = {"tokenizer": _open_tokenizer, "model": _open_model}
