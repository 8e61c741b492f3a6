"""The tensors of GGUF files under Hugging Face's names: made whole from their blocks, with the rows in our order."""

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING

import ml_dtypes
import numpy as np

from allam_jax.errors import UserError
from allam_jax.gguf_file import GgufEntry, GgufFile
from allam_jax.model.llama_config import LlamaConfig
from allam_jax.weights.gguf_config import ARCHITECTURES, ROPE_FACTORS, has_paired_rows
from allam_jax.weights.pieces import pieces_of
from allam_jax.weights.safetensors_io import StoredTensor, read_into

if TYPE_CHECKING:
    from gguf import GGMLQuantizationType

_WHOLE = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class GgufTensor(StoredTensor):
    """A tensor in a GGUF file. Quantised ones are read as float32.

    `head_dim` is the size of a head where its rows stand in pairs (0, H/2), (1, H/2 + 1), ...; otherwise 0.
    """

    entry: GgufEntry
    head_dim: int = 0

    def read_rows(self, *, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Reads the rows start..stop (along axis 0; whole heads, where rows stand in pairs) as `dtype`.

        UserError if the file is cut.
        """
        stop = self.shape[0] if stop is None else stop
        if len(self.shape) == 1:
            raw = np.empty(self.entry.nbytes, np.uint8)
            read_into(raw, self, position=self.offset)
            rows = self._whole(raw)[start:stop]
        else:
            raw = np.empty((stop - start, self.entry.row_bytes), np.uint8)
            read_into(raw, self, position=self.offset + start * self.entry.row_bytes)
            rows = self._whole(raw)
        return unpaired(rows, self.head_dim) if self.head_dim else rows

    def _whole(self, raw: np.ndarray) -> np.ndarray:
        if self.entry.kind.name in _WHOLE:
            return raw.view(self.dtype)
        from gguf import quants  # here, because the import takes time

        try:
            with np.errstate(invalid="ignore", over="ignore"):  # what is not finite is reported by its name
                return quants.dequantize(raw, self.entry.kind)
        except NotImplementedError:
            raise UserError(
                f"{self.file}: tensor {self.entry.name} is stored as {self.entry.kind.name}, which the gguf package "
                "does not read; give a file of another type, such as Q8_0"
            ) from None


def unpaired(rows: np.ndarray, head_dim: int) -> np.ndarray:
    """Rows of whole heads in the order 0, 1, ..., H - 1, of rows in the order 0, H/2, 1, H/2 + 1, ..."""
    return rows.reshape(-1, head_dim // 2, 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def paired(rows: np.ndarray, head_dim: int) -> np.ndarray:
    """The inverse of `unpaired`."""
    return rows.reshape(-1, 2, head_dim // 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def gguf_tensors(file: GgufFile, config: LlamaConfig) -> dict[str, StoredTensor]:
    """The tensors by Hugging Face's name; those that no network of ours has keep their own."""
    ours = {theirs: name for name, theirs in gguf_names(config).items()}
    architecture = ARCHITECTURES[config.model_type]
    found: dict[str, StoredTensor] = {}
    for name, entry in file.tensors.items():
        if name == ROPE_FACTORS:  # has become the configuration's
            continue
        tensor = GgufTensor(
            name=ours.get(name, name),
            dtype=_WHOLE.get(entry.kind.name, np.dtype(np.float32)),
            shape=entry.shape,
            file=entry.file,
            offset=entry.offset,
            entry=entry,
            head_dim=head_of_rows(ours.get(name, name), config) if has_paired_rows(architecture) else 0,
        )
        found[tensor.name] = tensor
    return found


def gguf_names(config: LlamaConfig) -> Mapping[str, str]:
    """Hugging Face's name of each tensor -> llama.cpp's."""
    from gguf import MODEL_ARCH, MODEL_ARCH_NAMES, get_tensor_name_map

    architectures = {name: architecture for architecture, name in MODEL_ARCH_NAMES.items()}
    architecture: MODEL_ARCH = architectures[ARCHITECTURES[config.model_type]]
    names = get_tensor_name_map(architecture, config.num_layers)
    found = {}
    for piece in (piece for pieces in pieces_of(config).values() for piece in pieces):
        theirs = names.get_name(piece.name, try_suffixes=(".weight", ".bias"))
        assert theirs is not None, piece.name
        found[piece.name] = theirs
    return found


def head_of_rows(name: str, config: LlamaConfig) -> int:
    """The size of a head, if the rows of this tensor are those of q or k; otherwise 0."""
    return config.head_dim if ".q_proj." in name or ".k_proj." in name else 0


def stored_kind(shape: tuple[int, ...], wanted: "GGMLQuantizationType") -> "GGMLQuantizationType":
    """How llama.cpp stores a tensor where matrices are `wanted`: vectors as F32; F16 where rows do not fit blocks."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    if len(shape) == 1:
        return GGMLQuantizationType.F32
    return wanted if shape[-1] % GGML_QUANT_SIZES[wanted][0] == 0 else GGMLQuantizationType.F16
