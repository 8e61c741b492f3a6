"""How Hugging Face stores each parameter: the names of its tensors, and their axes.

Each of our parameters is one of their tensors, or the stack of one tensor for each layer, transposed: they store a
linear map as [out, in]; we store [in, out] with heads on an axis of their own.
"""

import dataclasses
import math
from collections.abc import Iterator

import numpy as np

from allam_jax.model.llama import abstract_params
from allam_jax.model.llama_config import LlamaConfig
from allam_jax.weights.orbax_arrays import flatten

BLOCK_ELEMENTS = 1 << 20  # the same blocks in every dtype, so that they can be combined, and each has one hash


@dataclasses.dataclass(frozen=True)
class _Mapping:
    """How Hugging Face stores one parameter of ours (of one layer, if `{}` is in the name)."""

    name: str
    to_ours: tuple[int, ...]  # permutation from their axes (with heads unfolded) to ours
    row_axes: int = 1  # number of their unfolded axes that form the rows of the stored matrix


_MAPPINGS: dict[tuple[str, ...], _Mapping] = {
    ("embedding", "table"): _Mapping("model.embed_tokens.weight", (0, 1)),
    ("layers", "attention_norm", "scale"): _Mapping("model.layers.{}.input_layernorm.weight", (0,)),
    ("layers", "attention", "query"): _Mapping("model.layers.{}.self_attn.q_proj.weight", (2, 0, 1), row_axes=2),
    ("layers", "attention", "key"): _Mapping("model.layers.{}.self_attn.k_proj.weight", (2, 0, 1), row_axes=2),
    ("layers", "attention", "value"): _Mapping("model.layers.{}.self_attn.v_proj.weight", (2, 0, 1), row_axes=2),
    ("layers", "attention", "bias", "query"): _Mapping("model.layers.{}.self_attn.q_proj.bias", (0, 1), row_axes=2),
    ("layers", "attention", "bias", "key"): _Mapping("model.layers.{}.self_attn.k_proj.bias", (0, 1), row_axes=2),
    ("layers", "attention", "bias", "value"): _Mapping("model.layers.{}.self_attn.v_proj.bias", (0, 1), row_axes=2),
    ("layers", "attention", "query_norm", "scale"): _Mapping("model.layers.{}.self_attn.q_norm.weight", (0,)),
    ("layers", "attention", "key_norm", "scale"): _Mapping("model.layers.{}.self_attn.k_norm.weight", (0,)),
    ("layers", "attention", "output"): _Mapping("model.layers.{}.self_attn.o_proj.weight", (1, 2, 0)),
    ("layers", "mlp_norm", "scale"): _Mapping("model.layers.{}.post_attention_layernorm.weight", (0,)),
    ("layers", "mlp", "gate"): _Mapping("model.layers.{}.mlp.gate_proj.weight", (1, 0)),
    ("layers", "mlp", "up"): _Mapping("model.layers.{}.mlp.up_proj.weight", (1, 0)),
    ("layers", "mlp", "down"): _Mapping("model.layers.{}.mlp.down_proj.weight", (1, 0)),
    ("final_norm", "scale"): _Mapping("model.norm.weight", (0,)),
    ("head", "kernel"): _Mapping("lm_head.weight", (1, 0)),
}
TABLE, HEAD = _MAPPINGS["embedding", "table"].name, _MAPPINGS["head", "kernel"].name


@dataclasses.dataclass(frozen=True)
class Piece:
    """One stored tensor, and the part of our parameter that it holds: all of it, or one layer."""

    name: str
    mapping: _Mapping
    layer: int | None
    shape: tuple[int, ...]  # our shape, without the layer axis and without padding rows

    @property
    def unfolded(self) -> tuple[int, ...]:
        """Their shape with heads unfolded: our shape with the permutation undone."""
        return tuple(self.shape[axis] for axis in np.argsort(self.mapping.to_ours))

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """Their shape in the file: [rows, columns], or [rows]."""
        rows, columns = self.unfolded[: self.mapping.row_axes], self.unfolded[self.mapping.row_axes :]
        return (math.prod(rows), math.prod(columns)) if columns else (math.prod(rows),)

    @property
    def block_axis(self) -> int:
        """The axis of our shape that is their first axis. A block is a range of it, which is contiguous in the file."""
        return self.mapping.to_ours.index(0)

    @property
    def block_size(self) -> int:
        """The length of a block on the block axis."""
        return max(1, BLOCK_ELEMENTS // math.prod(self.unfolded[1:]))

    def blocks(self) -> Iterator[tuple[int, int]]:
        """Yields (start, stop) of ranges of the block axis, each of a few megabytes."""
        rows = self.unfolded[0]
        for start in range(0, rows, self.block_size):
            yield start, min(start + self.block_size, rows)


def pieces_of(config: LlamaConfig) -> dict[tuple[str, ...], list[Piece]]:
    """Path of each parameter of a network with this configuration -> its stored tensors."""
    shapes = {
        path: leaf.shape
        for path, leaf in flatten(abstract_params(dataclasses.replace(config, vocab_multiple=1))).items()
    }
    pieces = {}
    for path, mapping in _MAPPINGS.items():  # in this order tensors are written
        if path not in shapes:  # tied embeddings have no head, Llama no biases
            continue
        if path[0] == "layers":
            pieces[path] = [
                Piece(mapping.name.format(layer), mapping, layer, shapes[path][1:])
                for layer in range(config.num_layers)
            ]
        else:
            pieces[path] = [Piece(mapping.name, mapping, None, shapes[path])]
    return pieces
