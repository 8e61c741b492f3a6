"""Writes a model as a GGUF file, which llama.cpp and what is built on it run."""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np

from allam_jax.checksums import write_list
from allam_jax.errors import UserError
from allam_jax.model.llama import Params
from allam_jax.model.llama_config import LlamaConfig
from allam_jax.parallel.distributed import is_main_process
from allam_jax.tokenizer.gguf_tokenizer import write_tokenizer
from allam_jax.tokenizer.tokenizer import Tokenizer
from allam_jax.weights.array_checksums import NOT_FINITE, all_finite
from allam_jax.weights.gguf_config import (
    ARCHITECTURES,
    ROPE_FACTORS,
    check_gguf_expressible,
    has_paired_rows,
    stretch_of,
    write_config,
)
from allam_jax.weights.gguf_tensors import gguf_names, head_of_rows, paired, stored_kind
from allam_jax.weights.huggingface import tensors_to_write
from allam_jax.weights.orbax_arrays import hash_box
from allam_jax.weights.output_directory import collective_directory
from allam_jax.weights.safetensors_io import TensorToWrite

if TYPE_CHECKING:
    from gguf import GGMLQuantizationType

# Types that are numbers as they are; all others are read as float32.
_READ_AS = {"F32": np.float32, "F16": np.float16, "BF16": jnp.bfloat16}


def export_gguf(
    directory: Path,
    *,
    params: Params,
    config: LlamaConfig,
    tokenizer: Tokenizer,
    kind: str,
    generation: Mapping[str, Any],
    template: str | None,
    name: str = "model",
) -> None:
    """Writes `directory/NAME-KIND.gguf` with its list, atomically; replaces an existing directory of ours.

    All processes must call it; the main process writes. Memory holds one tensor at a time.

    Args:
        directory: directory to write.
        params: the parameters, or a `StreamedArray` for each.
        config: their architecture.
        tokenizer: for the vocabulary.
        kind: of matrices, one of GGUF_TYPES; vectors are F32.
        generation: the content of `generation_config.json`.
        template: the chat template, if there is one.
        name: of the file.

    Raises:
        UserError: llama.cpp has no such network or tokenizer, or a value is too large for the kind.
    """
    from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType

    check_gguf_expressible(config)
    architecture = ARCHITECTURES[config.model_type]
    wanted = GGMLQuantizationType[kind]
    tensors = tensors_to_write(params, config, "float32")
    names = gguf_names(config)
    with collective_directory(Path(directory)) as temporary:
        if not is_main_process():
            for tensor in tensors:  # takes part in the all-gather of each block
                for _ in tensor.blocks():
                    pass
            return
        writer = GGUFWriter(temporary / f"{name}-{kind}.gguf", architecture)
        writer.add_type("model")
        writer.add_name(name)
        writer.add_file_type(LlamaFileType["ALL_F32" if kind == "F32" else f"MOSTLY_{kind}"])
        writer.add_quantization_version(2)
        write_config(writer, config)
        write_tokenizer(writer, tokenizer.model, rows=config.vocab_size, generation=generation, template=template)
        stretch = stretch_of(config)
        if stretch is not None:
            writer.add_tensor_info(ROPE_FACTORS, stretch.shape, stretch.dtype, stretch.nbytes)
        kinds = [stored_kind(tensor.shape, wanted) for tensor in tensors]
        for tensor, own in zip(tensors, kinds, strict=True):
            size = _stored_bytes(tensor.shape, own)
            shape = (*tensor.shape[:-1], size // math.prod(tensor.shape[:-1]))
            writer.add_tensor_info(names[tensor.name], shape, np.dtype(np.uint8), size, raw_dtype=own)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        if stretch is not None:
            writer.write_tensor_data(stretch)
        hashes: dict[str, list[str]] = {}
        for tensor, own in zip(tensors, kinds, strict=True):
            head_dim = head_of_rows(tensor.name, config) if has_paired_rows(architecture) else 0
            hashes[tensor.name] = []
            blocks = _encoded(tensor, own, head_dim=head_dim, hashes=hashes[tensor.name])
            writer.write_tensor_data(np.concatenate(list(blocks)))
        writer.close()
        write_list(temporary, arrays=hashes)


def _stored_bytes(shape: tuple[int, ...], kind: "GGMLQuantizationType") -> int:
    from gguf import GGML_QUANT_SIZES

    block, size = GGML_QUANT_SIZES[kind]
    return math.prod(shape) // block * size


def _encoded(
    tensor: TensorToWrite, kind: "GGMLQuantizationType", *, head_dim: int, hashes: list[str]
) -> Iterator[np.ndarray]:
    """The bytes of each block; `hashes` gets those of the values that reading it will give."""
    from gguf import quants

    for rows in tensor.blocks():
        with np.errstate(over="ignore"):  # the check reports an overflow
            encoded = quants.quantize(rows, kind)
        read = encoded.view(_READ_AS[kind.name]) if kind.name in _READ_AS else quants.dequantize(encoded, kind)
        if not all_finite(read):
            raise UserError(f"export: {tensor.name} {NOT_FINITE}; it was to become {kind.name}")
        hashes.append(hash_box(read))
        yield (paired(encoded, head_dim) if head_dim else encoded).reshape(-1).view(np.uint8)
