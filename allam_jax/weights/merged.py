"""A merged model, whose parameters are computed from models on disk when they are read, one block at a time."""

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np

from allam_jax.errors import UserError
from allam_jax.model.llama import Params, abstract_params
from allam_jax.model.llama_config import LlamaConfig
from allam_jax.weights.merging import rounded, slerp_coefficients, weighted_sum
from allam_jax.weights.pieces import Piece, pieces_of
from allam_jax.weights.stored_parameters import StoredParameter, StoredParameters
from allam_jax.weights.streamed import StreamedArray

# Fields that may differ between the merged models, because they do not change the network.
_FREE = ("vocab_multiple", "init_std")


@dataclasses.dataclass(frozen=True)
class Slerp:
    """Spherical interpolation of two models, for each tensor: one layer of a matrix, a table, or a norm's scale."""

    t: float  # 0 is the first model, 1 the second


Method = Sequence[float] | Slerp  # the coefficients c_j of sum_j c_j theta_j, one for each model, or an interpolation


def merged_params(
    models: Sequence[StoredParameters], *, config: LlamaConfig, method: Method, dtype: str | None = None
) -> Params:
    """The parameters of the merge as `StreamedArray`s, in the layout of `config`, with padding rows.

    Args:
        models: models on disk, of this architecture.
        config: the architecture.
        method: what to compute, in float64.
        dtype: of the result; None means, for each parameter, the dtype that holds the values of all models.

    Raises:
        UserError: the result is not finite; raised when a parameter is read.
    """
    all_pieces = pieces_of(config)

    def leaf(path: tuple[jax.tree_util.DictKey, ...], whole: jax.ShapeDtypeStruct) -> StreamedArray:
        keys = tuple(key.key for key in path)
        pieces, parameters = all_pieces[keys], [model[keys] for model in models]
        stacked = pieces[0].layer is not None
        shape = whole.shape[1:] if stacked else whole.shape

        def compute(layer: int | None, dtype: np.dtype) -> np.ndarray:
            piece = pieces[0 if layer is None else layer]
            return _merge_piece(piece, parameters, method=method, shape=shape, dtype=dtype)

        wide = np.dtype(jax.numpy.result_type(*(parameter.dtype for parameter in parameters)))
        array = StreamedArray(whole.shape, wide, stacked, compute)
        return array.astype(dtype) if dtype else array

    return jax.tree_util.tree_map_with_path(leaf, abstract_params(config))


def check_same_architecture(configs: Sequence[tuple[str, LlamaConfig]]) -> None:
    """Raises UserError for the first field in which a model, given as (name, architecture), differs from the first."""
    (first_name, first), *others = ((name, dataclasses.asdict(config)) for name, config in configs)
    for name, other in others:
        for field, value in first.items():
            if field not in _FREE and other[field] != value:
                raise UserError(
                    f"merge: {first_name} has {field} = {value}, but {name} has {other[field]}; only models of one "
                    "architecture can be merged"
                )


def _merge_piece(
    piece: Piece,
    parameters: Sequence[StoredParameter],
    *,
    method: Method,
    shape: tuple[int, ...],
    dtype: np.dtype,
) -> np.ndarray:
    """One tensor of the result. `shape` is the piece's shape with padding rows, which are zero."""
    blocks = list(piece.blocks())
    if isinstance(method, Slerp):
        first_model, second_model = parameters
        pairs = ((first_model.read(piece, *block), second_model.read(piece, *block)) for block in blocks)
        method = slerp_coefficients(pairs, t=method.t)
    result: np.ndarray | None = None
    for first, last in blocks:
        total = weighted_sum((parameter.read(piece, first, last) for parameter in parameters), method)
        if result is None:
            result = _zeros(shape, dtype, like=total)
        index = [slice(0, size) for size in piece.shape]
        index[piece.block_axis] = slice(first, last)
        result[tuple(index)] = rounded(total, dtype, name=piece.name)
    assert result is not None
    return result


def _zeros(shape: tuple[int, ...], dtype: np.dtype, *, like: np.ndarray) -> np.ndarray:
    """Zeros whose axes have the memory order of the axes of `like`, which makes copying blocks into them fast."""
    order = sorted(range(like.ndim), key=lambda axis: -like.strides[axis])
    return np.zeros([shape[axis] for axis in order], dtype).transpose(np.argsort(order))
