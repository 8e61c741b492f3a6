"""Opens the model at a path: a weights directory, a Hugging Face directory, a GGUF file, a run, or a checkpoint."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from allam_jax.checksums import FILE_LIST, read_listed, write_listed
from allam_jax.config import CHECKPOINTS_FOLDER, RUN_FILE
from allam_jax.errors import UserError
from allam_jax.files import json_text, read_json
from allam_jax.gguf_file import gguf_at
from allam_jax.model.llama import LORA, abstract_params
from allam_jax.model.llama_config import LlamaConfig
from allam_jax.model.low_rank import merged
from allam_jax.tokenizer.tokenizer import files_of_tokenizer
from allam_jax.tokenizer.tokenizer_files import MODEL_FILES
from allam_jax.training.stored_checkpoints import (
    find_checkpoint,
    is_checkpoint,
    list_steps,
    params_folder,
    read_metadata,
    restore_params,
    step_path,
    stored_adapters,
)
from allam_jax.weights.directory import (
    MODEL_FILE,
    TOKENIZER_FOLDER,
    LoadedWeights,
    abstract_on_devices,
    as_dtype,
    config_from_json,
    config_to_json,
    is_weights_directory,
    load_weights,
    open_weights,
    params_folder_of,
)
from allam_jax.weights.huggingface import import_huggingface, weight_files
from allam_jax.weights.output_directory import copy_tokenizer
from allam_jax.weights.stored_parameters import huggingface_parameters, orbax_parameters

_REMEDY = "copy the run again, or take the file from a run of the same model"


def load_model(path: Path, *, mesh: Mesh | None = None, param_dtype: str | None = None) -> LoadedWeights:
    """Loads a model from any of these places; each device reads only the parameters that it will hold.

    Args:
        path: a weights directory, a Hugging Face directory, a GGUF file (or a directory with one), a run's workdir (its
            newest checkpoint) or a checkpoint. The adapters of a run are merged into its weights.
        mesh: where the parameters go; None means the default device.
        param_dtype: converts to this dtype; None keeps what is stored.

    Raises:
        UserError: nothing of the kind is there, or it is damaged.
    """
    path = Path(path)
    if is_weights_directory(path):
        return load_weights(path, mesh=mesh, param_dtype=param_dtype)
    if is_foreign(path):
        params, config = import_huggingface(path, mesh=mesh, param_dtype=param_dtype)
        return LoadedWeights(params, config, {"source": str(path)}, _tokenizer_beside(path))
    checkpoint, opened = _open_run(path)
    abstract = abstract_on_devices(opened.params, config=opened.config, mesh=mesh)
    if adapters := stored_adapters(checkpoint):
        whole = NamedSharding(mesh, PartitionSpec()) if mesh else jnp.zeros(()).sharding
        abstract[LORA] = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=whole), adapters
        )
        params = as_dtype(merged(restore_params(checkpoint, abstract_params=abstract)), param_dtype)
    else:
        params = restore_params(checkpoint, abstract_params=abstract, param_dtype=param_dtype)
    return dataclasses.replace(opened, params=params)


def open_stored(path: Path) -> LoadedWeights:
    """What `load_model` loads, but the parameters stay on disk, as `StoredParameters`.

    It raises the same errors, except those that only reading the values can bring to light.
    """
    path = Path(path)
    if is_weights_directory(path):
        opened = open_weights(path, check_bytes=True)
        return dataclasses.replace(opened, params=orbax_parameters(params_folder_of(path), config=opened.config))
    if is_foreign(path):
        params, config = huggingface_parameters(path)
        return LoadedWeights(params, config, {"source": str(path)}, _tokenizer_beside(path))
    checkpoint, opened = _open_run(path)
    if stored_adapters(checkpoint):
        raise UserError(
            f"{path}: a run with low-rank adapters; export it first (task export), and give what that wrote"
        )
    folder = params_folder(checkpoint, abstract_params=opened.params)
    return dataclasses.replace(opened, params=orbax_parameters(folder, config=opened.config, under=("params",)))


def checkpoint_of(path: Path) -> Path | None:
    """The checkpoint directory that `path` (a run's workdir, its checkpoints folder or one of them) means, or None."""
    path = Path(path)
    for candidate in (path / CHECKPOINTS_FOLDER, path):
        if candidate.is_dir() and (list_steps(candidate) or is_checkpoint(candidate)):
            return find_checkpoint(candidate)
    return None


def places_of_model(path: Path, *, steps: Sequence[int] = ()) -> list[Path]:
    """What loading a model reads: `path`, or parts of a run with the newest checkpoint or those of `steps`."""
    if is_weights_directory(path) or is_foreign(path):
        return [path]
    checkpoint = checkpoint_of(path)
    if checkpoint is None:
        return []
    chosen = [step_path(checkpoint.parent, step) for step in steps] or [checkpoint]
    return [run_of(checkpoint) / MODEL_FILE, run_of(checkpoint) / TOKENIZER_FOLDER, *chosen]


def run_of(checkpoint: Path) -> Path:
    """The workdir of the run that wrote a checkpoint."""
    return checkpoint.parent.parent


def save_run(
    workdir: Path,
    *,
    config: LlamaConfig,
    tokenizer_dir: Path,
    name: str,
    beside_tokenizer: Mapping[str, bytes] = MappingProxyType({}),
) -> None:
    """Writes what a run's checkpoints need to be loaded as a model, and the run's name, which is in all of them."""
    copy_tokenizer(tokenizer_dir, to=workdir / TOKENIZER_FOLDER, changed=beside_tokenizer)
    tokenizer_list = f"{TOKENIZER_FOLDER}/{FILE_LIST}"
    contents = {
        MODEL_FILE: f"{json_text(config_to_json(config), indent=2)}\n".encode(),
        tokenizer_list: (workdir / tokenizer_list).read_bytes(),
        RUN_FILE: f"{json_text({'name': name})}\n".encode(),
    }
    write_listed(workdir, contents)


def read_run(workdir: Path) -> LlamaConfig:
    """The architecture of the run in `workdir`."""
    return config_from_json(read_listed(workdir, MODEL_FILE, remedy=_REMEDY), file=workdir / MODEL_FILE)


def run_name(workdir: Path) -> str | None:
    """The name that `save_run` wrote; None for a run from before runs had names."""
    if not (workdir / RUN_FILE).exists():
        return None
    return read_json(workdir / RUN_FILE, keys={"name": str})["name"]


def check_run_of(checkpoint: Path, metadata: dict[str, Any]) -> None:
    """UserError if a checkpoint in a run's folder was written by another run."""
    own = run_name(run_of(checkpoint))
    if own is not None and metadata.get("run") not in (None, own):
        raise UserError(
            f"{checkpoint}: was written by another run (it began with another config, tokenizer or mixture); move it "
            "away, or start a branch from it: --config.init.weights in another --workdir"
        )


def is_foreign(path: Path) -> bool:
    """Whether a path is a Hugging Face directory with a whole model (not an adapter), a GGUF file or its directory."""
    return ((path / "config.json").is_file() and bool(weight_files(path))) or gguf_at(path) is not None


def _open_run(path: Path) -> tuple[Path, LoadedWeights]:
    """The checkpoint that `path` means, and its model with abstract parameters."""
    checkpoint = checkpoint_of(path)
    if checkpoint is None:
        raise UserError(what_is_there(path))
    config, tokenizer = read_run(run_of(checkpoint)), _tokenizer_beside(run_of(checkpoint) / TOKENIZER_FOLDER)
    return checkpoint, LoadedWeights(abstract_params(config), config, read_metadata(checkpoint), tokenizer)


def _tokenizer_beside(path: Path) -> Path | None:
    found = files_of_tokenizer(path)
    return found if any((found / name).is_file() for name in MODEL_FILES) else None


def what_is_there(path: Path) -> str:
    """One line about a path at which no model is found."""
    expected = (
        "expected a weights directory, a Hugging Face directory (config.json and *.safetensors), a GGUF file or a run"
    )
    if not path.exists():
        return f"{path}: no such directory; {expected}"
    if not path.is_dir():
        return f"{path}: is a file; {expected}"
    if (path / "adapter_config.json").is_file():
        return f"{path}: a LoRA adapter; merge it into its base first (in peft: merge_and_unload, then save_pretrained)"
    if (path / CHECKPOINTS_FOLDER).is_dir():
        return f"{path}: a run without a complete checkpoint; wait for its first, or give another path"
    if (path / RUN_FILE).is_file():
        return f"{path}: a run whose folder {CHECKPOINTS_FOLDER} is missing; put it back, or give another path"
    pickles = sorted(path.glob("*.bin")) + sorted(path.glob("*.pth"))
    if pickles:
        return f"{path}: holds pickled weights ({pickles[0].name}), which can run code; convert them to safetensors"
    names = ", ".join(sorted(entry.name for entry in path.iterdir())[:5]) or "nothing"
    return f"{path}: holds {names}; {expected}"
