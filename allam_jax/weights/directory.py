"""The weights directory: parameters with everything needed to use them, independent of any training run.

_METADATA, ...   Orbax, with each parameter as one array, so that it can be restored onto any mesh; its files lie
                 beside ours, so that a stock `StandardCheckpointer` opens the directory (older ones: in params/)
model.json       the architecture (`LlamaConfig`) and the version of this layout
metadata.json    where the weights come from: step, parent, tokenizer fingerprint, code revision, ...
tokenizer/       the tokenizer's files
files.json       the size and hash of every file and of every array: what is read is compared with it
"""

import dataclasses
import os
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from absl import logging
from jax.sharding import Mesh, Sharding

from allam_jax.checksums import FileList, write_list
from allam_jax.errors import UserError
from allam_jax.files import write_json
from allam_jax.model.llama import Params, abstract_params, param_axes
from allam_jax.model.llama_config import LlamaConfig
from allam_jax.parallel.distributed import barrier, is_main_process
from allam_jax.parallel.host_memory import check_memory
from allam_jax.parallel.sharding import parameter_shardings
from allam_jax.weights.array_checksums import array_checksums, check_arrays, check_finite
from allam_jax.weights.orbax_arrays import flatten, reading, save_args, write_arrays
from allam_jax.weights.orbax_logs import quiet_orbax
from allam_jax.weights.output_directory import collective_directory, copy_tokenizer, tokenizer_files
from allam_jax.weights.streamed import StreamedArray

FORMAT_VERSION = 1
MODEL_FILE = "model.json"
METADATA_FILE = "metadata.json"
_OLD_PARAMS_FOLDER = "params"
_ORBAX_FILE = "_METADATA"
_ORBAX_FILES = re.compile(r"(params|d|array_metadatas|ocdbt\.process_\d+)/|(manifest\.ocdbt|_[A-Za-z_]+)$")
TOKENIZER_FOLDER = "tokenizer"
_REMEDY = "copy or export the weights again"
_MOST_SPARE = 0.05  # share of rows that padding explains: 0.3 % in Qwen2.5, 1.8 % in Phi-2, 2.3 % in DeepSeek-LLM


@dataclasses.dataclass(frozen=True)
class LoadedWeights:
    """Parameters and what was stored with them."""

    params: Any  # arrays, or what stands for them: see the function that gives this
    config: LlamaConfig
    metadata: dict[str, Any]
    tokenizer_dir: Path | None  # None when there was no tokenizer


def save_weights(
    directory: Path,
    *,
    params: Params,
    config: LlamaConfig,
    tokenizer_dir: Path | None = None,
    metadata: dict[str, Any] | None = None,
) -> None:
    """Writes a weights directory atomically; replaces an existing one.

    All processes must call it. Each writes the shards that it holds.

    Args:
        directory: on a file system that all processes share.
        params: the parameters in any layout, or a `StreamedArray` for each.
        config: their architecture.
        tokenizer_dir: directory whose tokenizer files are copied, if any.
        metadata: JSON-able.

    Raises:
        UserError: the parameters do not have the shapes of `config`, `tokenizer_dir` holds no tokenizer, or the disk
            refuses the write.
    """
    _check_shapes(params, config, where="the parameters to save")
    if tokenizer_dir is not None:
        tokenizer_files(tokenizer_dir)
    streamed = all(isinstance(leaf, StreamedArray) for leaf in jax.tree.leaves(params))  # those check what they compute
    if not streamed:
        check_finite(params, where=f"{directory}: the parameters to save")
    with collective_directory(Path(directory)) as temporary:
        folder = temporary / _OLD_PARAMS_FOLDER
        try:
            if streamed:
                checksums = write_arrays(folder, params)
            else:
                checksums = array_checksums(params)
                with _checkpointer() as checkpointer:
                    args = ocp.args.StandardSave(params, save_args=save_args(params))
                    checkpointer.save(folder.absolute(), args=args)
        except ValueError as error:  # Orbax gives the number of an operating-system error only in the message
            if number := re.search(r"os_error_code='(\d+)'", str(error)):
                raise OSError(int(number[1]), os.strerror(int(number[1]))) from error
            raise
        barrier(f"parameters of {directory}")
        if is_main_process():
            for path in list(folder.iterdir()):  # Orbax writes only into a directory that it makes
                path.rename(temporary / path.name)
            folder.rmdir()
            if tokenizer_dir is not None:
                copy_tokenizer(tokenizer_dir, to=temporary / TOKENIZER_FOLDER)
            write_json(temporary / METADATA_FILE, metadata or {})
            write_json(temporary / MODEL_FILE, config_to_json(config))
            write_list(temporary, arrays=checksums)


def load_weights(directory: Path, *, param_dtype: str | None = None, mesh: Mesh | None = None) -> LoadedWeights:
    """Reads a weights directory; each device reads only its shards.

    Args:
        directory: written by `save_weights`.
        param_dtype: dtype to convert to; None keeps the stored one.
        mesh: the devices, with the layout of `DEFAULT_RULES`; None means the default device.

    Raises:
        UserError: not a weights directory, an unknown layout version, parameters that do not fit `model.json`, or
            something is not as it was written.
    """
    files = _checked_list(Path(directory))
    opened = open_weights(directory)
    folder = params_folder_of(Path(directory))
    target = abstract_on_devices(opened.params, config=opened.config, mesh=mesh)
    with _checkpointer() as checkpointer, reading(f"{folder}:"):
        params = checkpointer.restore(folder, target)
    check_arrays(params, files.arrays, folder=folder, remedy=_REMEDY)
    check_finite(params, where=str(folder))
    return dataclasses.replace(opened, params=as_dtype(params, param_dtype))


def as_dtype(params: Params, dtype: str | None) -> Params:
    """The parameters in another dtype, one array after the other; None changes nothing."""
    if dtype is None:
        return params
    leaves, structure = jax.tree.flatten(params)
    del params
    return jax.tree.unflatten(structure, [leaves.pop(0).astype(dtype) for _ in range(len(leaves))])


def open_weights(directory: Path, *, check_bytes: bool = False) -> LoadedWeights:
    """Like `load_weights`, but with Orbax's description (shape, dtype) of each parameter instead of the parameter.

    `check_bytes` reads all files and compares their hashes, for callers that read parameters by themselves.
    """
    directory = Path(directory)
    files = _checked_list(directory)
    config = config_from_json(files.read_json(MODEL_FILE, remedy=_REMEDY), file=directory / MODEL_FILE)
    metadata = files.read_json(METADATA_FILE, remedy=_REMEDY)
    folder = params_folder_of(directory)
    if check_bytes:
        files.check_bytes(remedy=_REMEDY)
    try:
        with _checkpointer() as checkpointer, reading(f"{folder}:"):
            stored = checkpointer.metadata(folder).item_metadata.tree
    except UserError:
        files.check_bytes(remedy=_REMEDY)  # names the file
        raise
    _check_shapes(stored, config, where=str(folder))
    tokenizer_dir = directory / TOKENIZER_FOLDER
    return LoadedWeights(stored, config, metadata, tokenizer_dir if tokenizer_dir.is_dir() else None)


def is_weights_directory(directory: Path) -> bool:
    """Whether a directory is meant to be one of weights; some file of it may be missing."""
    named = [name for name in (MODEL_FILE, METADATA_FILE, _ORBAX_FILE) if (directory / name).is_file()]
    return len(named) > 1 or (directory / _OLD_PARAMS_FOLDER).is_dir()


def params_folder_of(directory: Path) -> Path:
    """Where Orbax has the parameters of a weights directory."""
    old = directory / _OLD_PARAMS_FOLDER
    return (old if old.is_dir() else directory).absolute()


def config_to_json(config: LlamaConfig) -> dict[str, Any]:
    """The content of `model.json`."""
    return {"format_version": FORMAT_VERSION, "architecture": dataclasses.asdict(config)}


def config_from_json(values: Any, *, file: Path) -> LlamaConfig:
    """Reads the content of `model.json`; UserError (naming `file`) for an unknown version or other fields."""
    version = values.get("format_version") if isinstance(values, dict) else None
    if version != FORMAT_VERSION:
        raise UserError(f"{file}: format_version = {version!r}; this code reads {FORMAT_VERSION}")
    try:
        return LlamaConfig(**values["architecture"])
    except (KeyError, TypeError) as error:
        raise UserError(f"{file}: `architecture` does not describe a Llama ({error})") from None


def check_vocabulary(
    config: LlamaConfig, tokenizer_size: int, *, tokenizer: str, weights: str, is_own: bool = False
) -> None:
    """UserError if the tokenizer does not fit the weights; names both, for instance by path.

    Every token needs a row of the tables. Many models have some rows more, which no token uses; a tokenizer that lies
    beside the weights (`is_own`) may leave any number of them, another one only as many as padding explains.
    """
    spare = config.vocab_size - tokenizer_size
    if spare > 0 and (is_own or spare <= _MOST_SPARE * config.vocab_size):
        logging.info("%s: %d of its %d rows belong to no token of %s", weights, spare, config.vocab_size, tokenizer)
    elif spare < 0 and is_own:
        raise UserError(
            f"{weights} has {config.vocab_size} rows, but its own tokenizer has {tokenizer_size} tokens: take those "
            "without a row out of its files (added_tokens.json, tokenizer_config.json, tokenizer.json), or give them "
            "rows (in transformers: resize_token_embeddings)"
        )
    elif spare:
        raise UserError(
            f"{weights} has {config.vocab_size} tokens but {tokenizer} has {tokenizer_size}: give the tokenizer that "
            "belongs to the weights, or expand the weights to this vocabulary first (task expand)"
        )


def shardings_on(config: LlamaConfig, *, mesh: Mesh | None) -> Any:
    """The tree of the parameters' shardings on `mesh`; None means the default device."""
    shapes = abstract_params(config)
    if mesh is not None:
        return parameter_shardings(param_axes(config), abstract_params=shapes, mesh=mesh)
    default = jnp.zeros(()).sharding
    return jax.tree.map(lambda _: default, shapes)


def abstract_on_devices(stored: Any, *, config: LlamaConfig, mesh: Mesh | None, param_dtype: str | None = None) -> Any:
    """The shapes, dtypes (those of `stored`, or `param_dtype`) and shardings to restore parameters into.

    UserError if they need more memory than a machine without accelerators has.
    """

    def leaf(array: Any, shape: jax.ShapeDtypeStruct, sharding: Sharding) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape.shape, jnp.dtype(param_dtype or array.dtype), sharding=sharding)

    target = jax.tree.map(leaf, stored, abstract_params(config), shardings_on(config, mesh=mesh))
    check_memory(target)
    return target


def _checked_list(directory: Path) -> FileList:
    """The list of a weights directory, whose files are all there."""
    files = FileList.read(directory, remedy=f"the weights directory is incomplete: {_REMEDY}")
    if not files.has_hashes:
        # Lists of sizes named the files of params/ alone.
        logging.warning("%s: written before there were checksums; damage inside its files goes unnoticed", directory)
        under = {f"{_OLD_PARAMS_FOLDER}/{name}": found for name, found in files.files.items()}
        there = [name for name in (MODEL_FILE, METADATA_FILE) if (directory / name).is_file()]
        small = {name: ((directory / name).stat().st_size, None) for name in there}
        files = dataclasses.replace(files, files=under | small)
    files.check(remedy=_REMEDY, reads=lambda name: bool(_ORBAX_FILES.match(name)) or name in files.files)
    return files


def _checkpointer() -> ocp.Checkpointer:
    quiet_orbax()
    return ocp.Checkpointer(ocp.StandardCheckpointHandler())


def _check_shapes(params: Any, config: LlamaConfig, *, where: str) -> None:
    found, expected = (
        {"/".join(path): tuple(leaf.shape) for path, leaf in flatten(tree).items()}
        for tree in (params, abstract_params(config))
    )
    for name in sorted(found.keys() | expected.keys()):
        if found.get(name) != expected.get(name):
            raise UserError(
                f"{where}: parameter {name} has shape {found.get(name, 'missing')}, but the architecture "
                f"implies {expected.get(name, 'none')}"
            )
