"""Vocabulary expansion: the tables of a network with a larger vocabulary (ALLaM paper, section 2.2 and figure 5).

A row of a piece that the old vocabulary has is copied; the plan gives its old id. A new row is made from the rows of
the old pieces that spell it (`subword_mean`, `first_piece`, `last_piece`, `mean_noise`), from the statistics of all old
rows (`mean_all`), or at random (`random`). Rows of padding are zero. Input and output tables may use different methods.
The rest of the network stays as it is.

U padded old vocabulary, V padded new vocabulary, D model width, C rows handled at a time, P longest spelling.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from allam_jax.errors import UserError
from allam_jax.model.llama import Params
from allam_jax.model.llama_config import LlamaConfig
from allam_jax.model.settings import DISTILLATION, ExpandSettings
from allam_jax.tokenizer.provenance import ExpansionPlan

_CHUNK = 512  # rows at a time: bounds what exists besides the tables themselves


def expand(
    params: Params,
    *,
    config: LlamaConfig,
    plan: ExpansionPlan,
    settings: ExpandSettings,
    seed: int,
) -> tuple[Params, LlamaConfig]:
    """Gives the network the vocabulary of `plan`.

    Methods:
        subword_mean: the mean of the pieces that the old tokenizer splits the new one into.
        first_piece, last_piece: the first or last of these pieces.
        mean_noise: subword_mean plus normal noise of `noise_std` times the standard deviation of the old table. The
            noise separates pieces that would get the same mean, such as those spelled in the same bytes.
        mean_all: normal with the mean of all old rows and `covariance_scale` times their covariance. The default is
            that of Hugging Face's `resize_token_embeddings`, which gives nearly the mean; 1 is the full spread.
        random: normal with standard deviation `config.init_std` and mean 0, like an untrained network.
        token_distillation: as subword_mean; the rows then learn (training/token_distillation.py).

    A new piece that no old piece spells gets the mean of all old rows under the first four.

    Args:
        params: of the old vocabulary; not changed. The result shares all arrays but the tables with it. The new tables
            lie on the devices as the old ones do.
        config: of `params`.
        plan: which old rows the new ones come from.
        settings: the methods for the input and the output table; tied tables cannot differ.
        seed: of all random numbers; those of the input and output tables differ.

    Returns:
        The parameters and the configuration with the new vocabulary.

    Raises:
        UserError: different methods for tied tables, a plan for another vocabulary, or a new vocabulary that the mesh
            does not divide.
    """
    method = "subword_mean" if settings.method == DISTILLATION else settings.method
    head_method = settings.head_method or method
    if config.tie_embeddings and head_method != method:
        raise UserError(
            f"expand.head_method = {head_method!r}: the tables of this model are tied, so it must equal expand.method "
            f"({method!r}) or be empty"
        )
    if plan.base_size > config.vocab_size:
        raise UserError(
            f"the base tokenizer has {plan.base_size} tokens, but the weights to expand have {config.vocab_size} rows: "
            "give the tokenizer that belongs to the weights, or take the tokens without a row out of its files"
        )
    new_config = dataclasses.replace(config, vocab_size=plan.merged_size)
    table = functools.partial(
        _expand_table,
        spelling=_spelling(plan, rows=new_config.padded_vocab_size),
        scales=_Scales(config.init_std, settings.noise_std, settings.covariance_scale),
        num_old=plan.base_size,  # other rows belong to no token, and end here
    )
    input_key, output_key = jax.random.split(jax.random.key(seed))
    expanded = dict(params)
    expanded["embedding"] = {"table": table(params["embedding"]["table"], vocab_axis=0, method=method, key=input_key)}
    if not config.tie_embeddings:
        kernel = table(params["head"]["kernel"], vocab_axis=1, method=head_method, key=output_key)
        expanded["head"] = {"kernel": kernel}
    return expanded, new_config


class _Spelling(NamedTuple):
    """For every new row, the old rows it comes from."""

    ids_VP: Array | np.ndarray  # the first `lengths_V` of a row count
    lengths_V: Array | np.ndarray
    kept_V: Array | np.ndarray  # whether the row is copied
    real_V: Array | np.ndarray  # whether the row is a token, not padding


class _Scales(NamedTuple):
    init_std: float
    noise_std: float
    covariance_scale: float


def _spelling(plan: ExpansionPlan, *, rows: int) -> _Spelling:
    added = plan.new | plan.special
    longest = max((len(ids) for ids in added.values()), default=1)
    ids_VP = np.zeros((rows, max(longest, 1)), np.int32)
    lengths_V = np.zeros(rows, np.int32)
    kept_V = np.zeros(rows, bool)
    merged_ids, base_ids = plan.kept[:, 0], plan.kept[:, 1]
    ids_VP[merged_ids, 0], lengths_V[merged_ids], kept_V[merged_ids] = base_ids, 1, True
    for index, ids in added.items():
        ids_VP[index, : len(ids)], lengths_V[index] = ids, len(ids)
    return _Spelling(ids_VP, lengths_V, kept_V, np.arange(rows) < plan.merged_size)


def _expand_table(
    table: Array,
    *,
    vocab_axis: int,
    spelling: _Spelling,
    method: str,
    key: Array,
    scales: _Scales,
    num_old: int,
) -> Array:
    """The embedding [U, D] or the head [D, U] with the new vocabulary, laid out as before."""
    shape = list(table.shape)
    shape[vocab_axis] = len(spelling.lengths_V)
    try:
        table.sharding.shard_shape(tuple(shape))
    except ValueError:
        raise UserError(
            f"the new vocabulary, padded to {shape[vocab_axis]} rows, is not divisible by the mesh: raise "
            "model.vocab_multiple of the weights to a multiple of mesh.tensor when importing them"
        ) from None

    def compute(table: Array, spelling: _Spelling, key: Array, scales: _Scales) -> Array:
        table_UD = jnp.moveaxis(table, vocab_axis, 0)
        rows_VD = _new_rows(table_UD, spelling, key, scales, method=method, num_old=num_old)
        return jnp.moveaxis(rows_VD, 0, vocab_axis)

    return jax.jit(compute, out_shardings=table.sharding)(table, spelling, key, scales)


def _new_rows(table_UD: Array, spelling: _Spelling, key: Array, scales: _Scales, *, method: str, num_old: int) -> Array:
    """[V, D] in the dtype of the table; sums are in float32."""
    num_rows = len(spelling.lengths_V)
    real_U1 = (jnp.arange(table_UD.shape[0]) < num_old)[:, None]
    mean_D = jnp.sum(table_UD, axis=0, where=real_U1, dtype=jnp.float32) / num_old
    centred_UD = jnp.where(real_U1, table_UD - mean_D, 0.0)

    def rows(ids: Array) -> Array:
        return table_UD[ids].astype(jnp.float32)

    def subword_mean(ids_CP: Any, lengths_C: Any) -> Array:
        def add(place: Array, total_CD: Array) -> Array:
            return total_CD + jnp.where((place < lengths_C)[:, None], rows(ids_CP[:, place]), 0.0)

        # One piece at a time, and only as many as this chunk needs: the pieces of all rows would not fit.
        total_CD = jax.lax.fori_loop(0, jnp.max(lengths_C), add, jnp.zeros((_CHUNK, table_UD.shape[1])))
        return total_CD / jnp.maximum(lengths_C, 1)[:, None]

    def new(ids_CP: Any, lengths_C: Any, key: Array) -> Array:
        normal = functools.partial(jax.random.normal, key, dtype=jnp.float32)
        if method == "random":
            return scales.init_std * normal((_CHUNK, table_UD.shape[1]))
        if method == "mean_all":
            # For z of independent standard normals, z @ X / sqrt(n) has the covariance X^T X / n: no need to factor it.
            noise_CD = jnp.matmul(normal((_CHUNK, table_UD.shape[0])), centred_UD, precision="highest")
            return mean_D + jnp.sqrt(scales.covariance_scale / num_old) * noise_CD
        if method == "first_piece":
            spelled_CD = rows(ids_CP[:, 0])
        elif method == "last_piece":
            spelled_CD = rows(jnp.take_along_axis(ids_CP, jnp.maximum(lengths_C - 1, 0)[:, None], axis=1)[:, 0])
        else:
            spelled_CD = subword_mean(ids_CP, lengths_C)
        spelled_CD = jnp.where((lengths_C > 0)[:, None], spelled_CD, mean_D)
        if method == "mean_noise":
            std = jnp.sqrt(jnp.sum(jnp.square(centred_UD)) / (num_old * table_UD.shape[1]))
            spelled_CD += scales.noise_std * std * normal(spelled_CD.shape)
        return spelled_CD

    def chunk(inputs: tuple[_Spelling, Array]) -> Array:
        part, index = inputs
        new_CD = new(part.ids_VP, part.lengths_V, jax.random.fold_in(key, index)).astype(table_UD.dtype)
        kept_CD = table_UD[part.ids_VP[:, 0]]
        return jnp.where(part.real_V[:, None], jnp.where(part.kept_V[:, None], kept_CD, new_CD), 0)

    num_chunks = -(-num_rows // _CHUNK)

    def cut(array: Array) -> Array:
        missing = num_chunks * _CHUNK - num_rows
        array = jnp.pad(jnp.asarray(array), [(0, missing)] + [(0, 0)] * (array.ndim - 1))
        return array.reshape(num_chunks, _CHUNK, *array.shape[1:])

    chunks = jax.lax.map(chunk, (jax.tree.map(cut, spelling), jnp.arange(num_chunks)))
    return chunks.reshape(-1, table_UD.shape[1])[:num_rows]
