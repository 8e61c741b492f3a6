"""The weights directory: bare parameters with what is needed to use them, independent of any training run.

params/          Orbax, each parameter as one array: restored straight onto any mesh
model.json       the architecture (`LlamaConfig`) and the version of this layout
metadata.json    where the weights come from: step, parent, tokenizer fingerprint, code revision, ...
tokenizer/       the tokenizer's files
files.json       size of every file of params/, so that a copy that is not complete is told by name
"""

import dataclasses
import os
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from jax.sharding import Mesh, Sharding

from allam_jax.errors import UserError
from allam_jax.files import check_file_sizes, file_sizes, read_json, write_json
from allam_jax.model.llama import Params, abstract_params, param_axes
from allam_jax.model.llama_config import LlamaConfig
from allam_jax.parallel.distributed import barrier, is_main_process
from allam_jax.parallel.sharding import DEFAULT_RULES, ShardingRules, parameter_shardings
from allam_jax.weights.orbax_arrays import save_args, write_arrays
from allam_jax.weights.orbax_logs import quiet_orbax
from allam_jax.weights.output_directory import collective_directory, copy_tokenizer, tokenizer_files
from allam_jax.weights.streamed import StreamedArray

FORMAT_VERSION = 1
MODEL_FILE = "model.json"
METADATA_FILE = "metadata.json"
PARAMS_FOLDER = "params"
FILE_LIST = "files.json"
TOKENIZER_FOLDER = "tokenizer"


@dataclasses.dataclass(frozen=True)
class LoadedWeights:
    """Parameters with what came beside them."""

    params: Params
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
    """Writes a weights directory; atomic: it appears complete or not at all, and replaces an older one.

    All processes must call it; each writes the shards that it holds.

    Args:
        directory: on a file system that all processes share.
        params: the parameters, in any layout, or a `StreamedArray` for each.
        config: their architecture.
        tokenizer_dir: whose tokenizer files are copied along.
        metadata: JSON-able.

    Raises:
        UserError: the parameters do not have the shapes of `config`, or `tokenizer_dir` holds no tokenizer.
    """
    _check_shapes(params, config, where="the parameters to save")
    if tokenizer_dir is not None:
        tokenizer_files(tokenizer_dir)
    with collective_directory(Path(directory)) as temporary:
        try:
            _save_params(temporary / PARAMS_FOLDER, params)
        except ValueError as error:  # of which kind Orbax says in words only
            if number := re.search(r"os_error_code='(\d+)'", str(error)):
                raise OSError(int(number[1]), os.strerror(int(number[1]))) from error
            raise
        barrier(f"parameters of {directory}")
        if is_main_process():
            write_json(temporary / FILE_LIST, file_sizes(temporary / PARAMS_FOLDER))
            if tokenizer_dir is not None:
                copy_tokenizer(tokenizer_dir, to=temporary / TOKENIZER_FOLDER)
            write_json(temporary / METADATA_FILE, metadata or {})
            write_json(temporary / MODEL_FILE, config_to_json(config))


def _save_params(folder: Path, params: Params) -> None:
    if all(isinstance(leaf, StreamedArray) for leaf in jax.tree.leaves(params)):
        write_arrays(folder, params)
        return
    with _checkpointer() as checkpointer:
        checkpointer.save(folder.absolute(), args=ocp.args.StandardSave(params, save_args=save_args(params)))


def load_weights(
    directory: Path,
    *,
    param_dtype: str | None = None,
    mesh: Mesh | None = None,
    rules: ShardingRules = DEFAULT_RULES,
) -> LoadedWeights:
    """Reads a weights directory, each device only what it will hold.

    Args:
        directory: written by `save_weights`.
        param_dtype: converts to this dtype; None keeps what is stored.
        mesh: where the parameters go, laid out by `rules`; None means the default device.
        rules: logical axes -> mesh axes.

    Raises:
        UserError: not a weights directory, an unknown layout version, or parameters that do not fit `model.json`.
    """
    folder = (Path(directory) / PARAMS_FOLDER).absolute()
    opened = open_weights(directory)
    config, stored = opened.config, opened.params
    with _checkpointer() as checkpointer:
        try:
            target = abstract_on_devices(stored, config=config, param_dtype=param_dtype, mesh=mesh, rules=rules)
            params = checkpointer.restore(folder, target)
        except jax.errors.JaxRuntimeError:  # no memory left, and the like
            raise
        except Exception as error:  # Orbax raises this very class for damaged arrays
            raise _unreadable(folder, error) from error
    return dataclasses.replace(opened, params=params)


def open_weights(directory: Path) -> LoadedWeights:
    """What `load_weights` gives, but for the parameters: in their place is what Orbax knows of each (shape, dtype)."""
    directory = Path(directory)
    config = config_from_json(read_json(directory / MODEL_FILE), file=directory / MODEL_FILE)
    metadata = read_json(directory / METADATA_FILE)
    folder = (directory / PARAMS_FOLDER).absolute()
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; the weights directory is incomplete, copy or export it again")
    check_file_sizes(folder, expected=read_json(directory / FILE_LIST), remedy="copy or export the weights again")
    with _checkpointer() as checkpointer:
        try:
            stored = checkpointer.metadata(folder).item_metadata.tree
        except Exception as error:  # Orbax raises this very class for damaged files
            raise _unreadable(folder, error) from error
    _check_shapes(stored, config, where=str(folder))
    tokenizer_dir = directory / TOKENIZER_FOLDER
    return LoadedWeights(stored, config, metadata, tokenizer_dir if tokenizer_dir.is_dir() else None)


def _unreadable(folder: Path, error: Exception) -> UserError:
    reason = str(error).strip().splitlines()[0][:200]
    return UserError(f"{folder}: cannot be read ({reason}); copy or export it again")


def is_weights_directory(path: Path) -> bool:
    """Whether `path` looks like the work of `save_weights`."""
    return (Path(path) / MODEL_FILE).is_file()


def config_to_json(config: LlamaConfig) -> dict[str, Any]:
    """The content of `model.json`."""
    return {"format_version": FORMAT_VERSION, "architecture": dataclasses.asdict(config)}


def config_from_json(values: Any, *, file: Path) -> LlamaConfig:
    """Reads the content of `model.json`; UserError (naming `file`) for another version or other fields."""
    version = values.get("format_version") if isinstance(values, dict) else None
    if version != FORMAT_VERSION:
        raise UserError(f"{file}: format_version = {version!r}; this code reads {FORMAT_VERSION}")
    try:
        return LlamaConfig(**values["architecture"])
    except (KeyError, TypeError) as error:
        raise UserError(f"{file}: `architecture` does not describe a Llama ({error})") from None


def check_vocabulary(config: LlamaConfig, *, tokenizer_size: int, tokenizer: str, weights: str) -> None:
    """UserError when the tokenizer and the weights disagree about the number of tokens.

    Args:
        config: of the weights.
        tokenizer_size: ids the tokenizer can produce.
        tokenizer: what to call it in the message (a path).
        weights: what to call them in the message.
    """
    if tokenizer_size != config.vocab_size:
        raise UserError(
            f"{weights} has {config.vocab_size} tokens but {tokenizer} has {tokenizer_size}: give the tokenizer that "
            "belongs to the weights, or expand the weights to this vocabulary first (task expand)"
        )


def shardings_on(config: LlamaConfig, *, mesh: Mesh | None, rules: ShardingRules = DEFAULT_RULES) -> Any:
    """The tree of shardings of the parameters on `mesh`; None means the default device."""
    shapes = abstract_params(config)
    if mesh is not None:
        return parameter_shardings(param_axes(config), abstract_params=shapes, mesh=mesh, rules=rules)
    default = jnp.zeros(()).sharding
    return jax.tree.map(lambda _: default, shapes)


def abstract_on_devices(
    stored: Any, *, config: LlamaConfig, param_dtype: str | None, mesh: Mesh | None, rules: ShardingRules
) -> Any:
    """Shapes, dtypes (those of `stored` unless `param_dtype` is given) and shardings to restore parameters into."""

    def leaf(array: Any, shape: jax.ShapeDtypeStruct, sharding: Sharding) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape.shape, jnp.dtype(param_dtype or array.dtype), sharding=sharding)

    return jax.tree.map(leaf, stored, abstract_params(config), shardings_on(config, mesh=mesh, rules=rules))


def _checkpointer() -> ocp.Checkpointer:
    quiet_orbax()
    return ocp.Checkpointer(ocp.StandardCheckpointHandler())


def _check_shapes(params: Any, config: LlamaConfig, *, where: str) -> None:
    def flat(tree: Any) -> dict[str, tuple[int, ...]]:
        leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda leaf: hasattr(leaf, "shape"))
        return {jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape) for path, leaf in leaves}

    found, expected = flat(params), flat(abstract_params(config))
    for name in sorted(found.keys() | expected.keys()):
        if found.get(name) != expected.get(name):
            raise UserError(
                f"{where}: parameter {name} has shape {found.get(name, 'missing')}, but the architecture "
                f"implies {expected.get(name, 'none')}"
            )
