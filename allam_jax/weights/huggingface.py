"""Converts between Hugging Face directories of Llama and its kin (`FAMILIES`) and parameters, block by block.

Both sides use the half-split layout of rotary embeddings, so no rows are permuted. A GGUF file is read as if it were
such a directory (`gguf_tensors.py`).

Import assembles each parameter in buffers that JAX takes over without a copy on CPU, and reads the files a few
megabytes at a time. Export fetches one layer at a time. Either way, memory holds little more than one copy of the
weights.
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, Sharding

from allam_jax.checksums import FileList, find_list, write_list
from allam_jax.errors import UserError
from allam_jax.files import read_json, write_json
from allam_jax.gguf_file import gguf_at, read_gguf
from allam_jax.model.llama import Params, abstract_params
from allam_jax.model.llama_config import LlamaConfig
from allam_jax.parallel.distributed import is_main_process
from allam_jax.parallel.host_memory import check_memory
from allam_jax.tokenizer.generation_config import name_pad_token
from allam_jax.tokenizer.tokenizer_files import GENERATION_FILE
from allam_jax.weights import safetensors_io
from allam_jax.weights.array_checksums import NOT_FINITE, all_finite
from allam_jax.weights.directory import shardings_on
from allam_jax.weights.gguf_config import config_from_gguf
from allam_jax.weights.gguf_tensors import gguf_tensors
from allam_jax.weights.huggingface_config import config_from_huggingface, config_to_huggingface, refuse_quantised
from allam_jax.weights.orbax_arrays import flatten, hash_box
from allam_jax.weights.output_directory import collective_directory, copy_tokenizer, tokenizer_files
from allam_jax.weights.pieces import BLOCK_ELEMENTS, HEAD, TABLE, Piece, pieces_of
from allam_jax.weights.safetensors_io import StoredTensor, TensorToWrite

_REMEDY = "copy or export it again (or remove files.json, if it was changed on purpose)"
_Range = tuple[int, int]  # (start, stop) on one axis


# What quantisers add to a tensor's name, or call it, where config.json does not tell.
_QUANTISED = {
    ".qweight": "GPTQ or AWQ",
    ".weight_packed": "compressed-tensors",
    ".weight_scale": "FP8 or INT8",
    ".weight_scale_inv": "FP8",
    ".weight.absmax": "bitsandbytes",
    ".weight.quant_map": "bitsandbytes",
    ".SCB": "bitsandbytes",
}
# Old exports contain these tensors, which follow from the configuration.
_IGNORED_SUFFIX = "rotary_emb.inv_freq"


# -- Import ------------------------------------------------------------------------------------------------------------


def import_huggingface(
    directory: Path, *, param_dtype: str | None = None, mesh: Mesh | None = None, vocab_multiple: int = 128
) -> tuple[Params, LlamaConfig]:
    """Reads a Llama directory (`config.json` and safetensors, in one file or in shards), or a GGUF file.

    Args:
        directory: the Hugging Face directory, or a GGUF file or a directory with one.
        param_dtype: dtype to convert to; None keeps the stored one.
        mesh: the devices, with the layout of `DEFAULT_RULES`; None means the default device.
        vocab_multiple: the tables are padded with zero rows up to a multiple of this.

    Raises:
        UserError: the configuration is not supported; a tensor is missing, unexpected, truncated or of another shape.
    """
    config, stored = open_huggingface(directory, vocab_multiple=vocab_multiple)
    pieces = pieces_of(config)

    def parts_of(path: tuple[jax.tree_util.DictKey, ...]) -> tuple[list[Piece], list[StoredTensor]]:
        parts = pieces[tuple(key.key for key in path)]
        return parts, [stored[part.name] for part in parts]

    def place(path: Any, whole: jax.ShapeDtypeStruct, sharding: Sharding) -> jax.ShapeDtypeStruct:
        dtype = parameter_dtype(parts_of(path)[1], param_dtype)
        return jax.ShapeDtypeStruct(whole.shape, dtype, sharding=sharding)

    shardings = shardings_on(config, mesh=mesh)
    targets = jax.tree_util.tree_map_with_path(place, abstract_params(config), shardings)
    check_memory(targets)
    return jax.tree_util.tree_map_with_path(lambda path, to: _assemble(*parts_of(path), to), targets), config


def open_huggingface(directory: Path, *, vocab_multiple: int = 128) -> tuple[LlamaConfig, dict[str, StoredTensor]]:
    """The architecture and the tensors (by Hugging Face's name) of a model, checked against each other.

    Arguments and errors are those of `import_huggingface`.
    """
    directory = Path(directory)
    if not weight_files(directory) and (gguf := gguf_at(directory)):
        return _open_gguf(gguf, vocab_multiple=vocab_multiple)
    if not directory.is_dir():
        raise UserError(f"{directory}: no such directory")
    files = find_list(directory, remedy=_REMEDY)
    config_file = directory / "config.json"
    if files:
        files.check(remedy=_REMEDY, reads=_is_read)
        values = files.read_json("config.json", remedy=_REMEDY)
    else:
        values = read_json(config_file, kind=dict)
    config = config_from_huggingface(values, file=config_file, vocab_multiple=vocab_multiple)
    stored = safetensors_io.read_directory(directory)
    for name, tensor in stored.items():
        method = next((method for suffix, method in _QUANTISED.items() if name.endswith(suffix)), None)
        if method or tensor.dtype.name.startswith("float8"):
            refuse_quantised(f"{tensor.file}: {name}", method=method or "FP8")
    if config.tie_embeddings and TABLE not in stored and HEAD in stored:
        stored[TABLE] = dataclasses.replace(stored.pop(HEAD), name=HEAD)  # some tied exports name the table so
    _check_tensors(stored, pieces_of(config), config=config, where=directory, states="config.json")
    return config, _with_hashes(stored, files)


def weight_files(directory: Path) -> list[Path]:
    """The safetensors of a directory that hold a model, not an adapter of one."""
    return [file for file in directory.glob("*.safetensors") if not file.name.startswith("adapter_")]


def _open_gguf(path: Path, *, vocab_multiple: int) -> tuple[LlamaConfig, dict[str, StoredTensor]]:
    if files := find_list(path.parent, remedy=_REMEDY):
        files.check(remedy=_REMEDY, reads=lambda name: name == path.name)
    file = read_gguf(path)
    config = config_from_gguf(file, vocab_multiple=vocab_multiple)
    stored = gguf_tensors(file, config)
    _check_tensors(stored, pieces_of(config), config=config, where=path, states="its metadata")
    return config, _with_hashes(stored, files)


def _with_hashes(stored: dict[str, StoredTensor], files: FileList | None) -> dict[str, StoredTensor]:
    """The tensors with the hashes of their blocks, where a list has them."""
    arrays = files.arrays if files else {}
    return {name: dataclasses.replace(t, blocks=tuple(arrays.get(t.name, ()))) for name, t in stored.items()}


def _is_read(name: str) -> bool:
    """Whether a file of a Llama directory decides what is read from it."""
    return name in ("config.json", GENERATION_FILE) or name.endswith((".safetensors", ".index.json"))


def read_block(piece: Piece, tensor: StoredTensor, *, first: int, last: int) -> np.ndarray:
    """Reads a block: the range first..last of `piece`'s block axis, in our axes (not contiguous), as it is stored.

    UserError if its values are not those that were written, where that is known, or are not finite.
    """
    rows_per_unit = piece.stored_shape[0] // piece.unfolded[0]
    rows = tensor.read_rows(start=first * rows_per_unit, stop=last * rows_per_unit)
    if tensor.blocks and hash_box(rows) != tensor.blocks[first // piece.block_size]:
        raise UserError(f"{tensor.file}: the values of {tensor.name} are not those that were written (xxh3); {_REMEDY}")
    if not all_finite(rows):
        raise UserError(f"{tensor.file}: {tensor.name} {NOT_FINITE}")
    return rows.reshape(last - first, *piece.unfolded[1:]).transpose(piece.mapping.to_ours)


def _check_tensors(
    stored: dict[str, StoredTensor],
    pieces: dict[tuple[str, ...], list[Piece]],
    *,
    config: LlamaConfig,
    where: Path,
    states: str,
) -> None:
    """UserError unless the tensors are those that the configuration implies, which `states` states."""
    expected = {piece.name: piece for parts in pieces.values() for piece in parts}
    found = {name for name in stored if not name.endswith(_IGNORED_SUFFIX)}
    if config.tie_embeddings and HEAD in found:
        # Some exports of networks with tied embeddings write the table twice.
        if not _equal(stored[HEAD], stored.get(TABLE)):
            raise UserError(
                f"{where}: {states} says tie_word_embeddings, but {HEAD} differs from the embedding; "
                "set tie_word_embeddings to false to keep both"
            )
        found.discard(HEAD)
    by_kind = {"missing": sorted(set(expected) - found), "unexpected": sorted(found - set(expected))}
    listed = [
        f"{len(names)} {kind} tensors: {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}"
        for kind, names in by_kind.items()
        if names
    ]
    if listed:
        is_tied = by_kind["missing"] == [HEAD]
        hint = "; if the embedding is the head too, set tie_word_embeddings to true there" if is_tied else ""
        raise UserError(f"{where}: {' and '.join(listed)}; {states} does not fit the tensors{hint}")
    for name, piece in expected.items():
        shape = stored[name].shape
        if shape != piece.stored_shape:
            is_table = piece.layer is None and shape[1:] == piece.stored_shape[1:]
            hint = f": the weights hold {shape[0]} tokens, vocab_size is {config.vocab_size}" if is_table else ""
            raise UserError(
                f"{stored[name].file}: tensor {name} has shape {shape}, but {states} implies {piece.stored_shape}{hint}"
            )


def _equal(first: StoredTensor, second: StoredTensor | None) -> bool:
    """Whether two tensors have the same values; each may have a dtype of its own."""
    if second is None or first.shape != second.shape:
        return False
    step = max(1, BLOCK_ELEMENTS // math.prod(first.shape[1:]))

    def rows(tensor: StoredTensor, start: int) -> np.ndarray:
        return tensor.read_rows(start=start, stop=min(start + step, tensor.shape[0])).astype(np.float64)

    return all(
        np.array_equal(rows(first, start), rows(second, start), equal_nan=True)
        for start in range(0, first.shape[0], step)
    )


def parameter_dtype(tensors: Sequence[StoredTensor], param_dtype: str | None) -> np.dtype:
    """`param_dtype`, or the narrowest dtype that holds these tensors; UserError for tensors that are no weights."""
    for tensor in tensors:
        if not jnp.issubdtype(tensor.dtype, jnp.floating):
            raise UserError(f"{tensor.file}: tensor {tensor.name} is {tensor.dtype}; expected floating-point weights")
        if tensor.dtype == np.float64 and param_dtype is None:
            raise UserError(f"{tensor.file}: tensor {tensor.name} is float64; choose a param_dtype, e.g. float32")
    if param_dtype is not None:
        return np.dtype(jnp.dtype(param_dtype))
    return np.dtype(jnp.result_type(*{tensor.dtype for tensor in tensors}))  # layers may differ


def _assemble(parts: list[Piece], tensors: list[StoredTensor], target: jax.ShapeDtypeStruct) -> jax.Array:
    """Reads the blocks that this process needs, each once, and copies them into the buffers of its shards."""
    shape, sharding = target.shape, target.sharding
    assert sharding is not None

    def bounds(index: tuple[slice, ...] | None) -> tuple[_Range, ...]:
        assert index is not None
        return tuple(part.indices(size)[:2] for part, size in zip(index, shape, strict=True))

    shards = {bounds(index) for index in sharding.addressable_devices_indices_map(shape).values()}
    buffers = {shard: _aligned_zeros(tuple(stop - start for start, stop in shard), target.dtype) for shard in shards}
    for piece, tensor in zip(parts, tensors, strict=True):
        targets = list(buffers.items())
        if (layer := piece.layer) is not None:
            targets = [(shard[1:], part[layer - shard[0][0]]) for shard, part in targets if layer in range(*shard[0])]
        for first, last in piece.blocks():
            if not any(
                shard[piece.block_axis][0] < last and first < shard[piece.block_axis][1] for shard, _ in targets
            ):
                continue  # only other processes need these rows
            block = read_block(piece, tensor, first=first, last=last)
            covered = [(0, size) for size in piece.shape]
            covered[piece.block_axis] = (first, last)
            for shard, buffer in targets:
                _copy_overlap(block, covered, buffer, shard)
    return jax.make_array_from_callback(shape, sharding, lambda index: buffers[bounds(index)])


def _copy_overlap(block: np.ndarray, covered: Sequence[_Range], buffer: np.ndarray, shard: Sequence[_Range]) -> None:
    """Copies the overlap. `block` holds the ranges `covered` of a parameter, and `buffer` holds the ranges `shard`."""
    overlap = [(max(a, c), min(b, d)) for (a, b), (c, d) in zip(covered, shard, strict=True)]
    if any(start >= stop for start, stop in overlap):
        return
    _copy(
        block[tuple(slice(a - c, b - c) for (a, b), (c, _) in zip(overlap, covered, strict=True))],
        to=buffer[tuple(slice(a - c, b - c) for (a, b), (c, _) in zip(overlap, shard, strict=True))],
    )


def _copy(source: np.ndarray, *, to: np.ndarray) -> None:
    """`to[...] = source`, five to ten times faster for transposed arrays."""
    if source.dtype == to.dtype:  # copies bits, because NumPy is slow with dtypes that are not its own
        bits = np.dtype(f"u{source.dtype.itemsize}")
        source, to = source.view(bits), to.view(bits)
    if source.ndim < 2 or source.strides[-1] == source.itemsize:
        to[...] = source
        return
    # Copies strips of about a cache line, so that each line is used up before it leaves the cache.
    for start in range(0, source.shape[-1], 16):
        to[..., start : start + 16] = source[..., start : start + 16]


def _aligned_zeros(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Zeros that start at a multiple of 64 bytes, which JAX on CPU uses without a copy."""
    size = math.prod(shape) * dtype.itemsize
    raw = np.zeros(size + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + size].view(dtype).reshape(shape)


# -- Export ------------------------------------------------------------------------------------------------------------


def export_huggingface(
    directory: Path,
    *,
    params: Params,
    config: LlamaConfig,
    tokenizer_dir: Path | None = None,
    dtype: str | None = None,
    max_shard_bytes: int = 5 * 10**9,
    generation: dict[str, Any] | None = None,
    pad_token: str = "",
) -> None:
    """Writes a directory that `AutoModelForCausalLM.from_pretrained` reads, atomically; replaces an existing one.

    All processes must call it; the main process writes. Padding rows are left out.

    Args:
        directory: directory to write.
        params: the parameters, or a `StreamedArray` for each.
        config: their architecture.
        tokenizer_dir: directory whose tokenizer files are copied, if any.
        dtype: of the exported weights; None keeps that of the parameters.
        max_shard_bytes: larger weights are split into several files with an index.
        generation: the content of `generation_config.json`; its `bos_token_id`, `eos_token_id` and `pad_token_id` also
            go into `config.json`.
        pad_token: of a tokenizer that names none itself; empty leaves it without.
    """
    generation = dict(generation or {})
    if tokenizer_dir is not None:
        tokenizer_files(tokenizer_dir)
    tensors = tensors_to_write(params, config, dtype)
    names = {jnp.dtype(tensor.dtype).name for tensor in tensors}
    dtype_name = names.pop() if len(names) == 1 else "float32"
    with collective_directory(Path(directory)) as temporary:
        if not is_main_process():
            for tensor in tensors:  # takes part in the all-gather of each block
                for _ in tensor.blocks():
                    pass
            return
        blocks = safetensors_io.write_directory(temporary, tensors, max_shard_bytes=max_shard_bytes)
        write_json(temporary / "config.json", config_to_huggingface(config, dtype=dtype_name, token_ids=generation))
        if tokenizer_dir is not None:
            copy_tokenizer(tokenizer_dir, to=temporary)
            if pad_token:
                name_pad_token(temporary, pad_token)
        write_json(temporary / GENERATION_FILE, generation)
        write_list(temporary, arrays=blocks)


def tensors_to_write(params: Params, config: LlamaConfig, dtype: str | None) -> list[TensorToWrite]:
    """The parameters as Hugging Face stores them, those of a layer together; dtype None keeps that of each."""
    by_path = [(path, piece) for path, pieces in pieces_of(config).items() for piece in pieces]
    by_path.sort(key=lambda entry: _position(*entry))
    arrays = flatten(params)
    return [_to_write(arrays[path], piece, dtype) for path, piece in by_path]


def _position(path: tuple[str, ...], piece: Piece) -> float:
    if piece.layer is not None:
        return piece.layer
    return -1 if path[0] == "embedding" else math.inf


def _to_write(param: jax.Array, piece: Piece, dtype: str | None) -> TensorToWrite:
    target = np.dtype(param.dtype) if dtype is None else np.dtype(jnp.dtype(dtype))

    def blocks() -> Iterator[np.ndarray]:
        ours = _to_host(param if piece.layer is None else param[piece.layer])
        ours = ours[tuple(slice(size) for size in piece.shape)]  # without padding rows
        theirs = ours.transpose(np.argsort(piece.mapping.to_ours))
        for first, last in piece.blocks():
            rows = np.empty(theirs[first:last].shape, target)
            with np.errstate(over="ignore"):  # the check reports an overflow
                _copy(theirs[first:last], to=rows)
            if not all_finite(rows):
                raise UserError(f"export: {piece.name} {NOT_FINITE}; it was to become {target.name}")
            yield rows.reshape(-1, *piece.stored_shape[1:])

    return TensorToWrite(piece.name, target, piece.stored_shape, blocks)


def _to_host(array: jax.Array | np.ndarray) -> np.ndarray:
    if isinstance(array, np.ndarray) or array.is_fully_addressable:
        return np.asarray(array)
    return multihost_utils.process_allgather(array, tiled=True)
