"""Llama in flax.nnx: RMSNorm, rotary positions, grouped-query attention, SwiGLU; layers stacked and scanned.

Shapes: B batch, T sequence, D model width, N query heads, K key/value heads, H head size, F feed-forward width,
V padded vocabulary, L layers. A network is described by `LlamaConfig`; its parameters live outside of it as a plain
nested dict (`init_params`), and `bind` joins both for one forward pass:

    hidden_BTD = bind(params, config=config, options=options).hidden(tokens_BT, ...)
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from allam_jax.model.llama_config import ComputeOptions, LlamaConfig
from allam_jax.parallel.sharding import DEFAULT_RULES, LogicalAxes, constrain
from kernels.attention.api import Partition, attention

Params = dict[str, Any]  # nested dict of arrays

REMAT_POLICIES = {
    # By name: left to itself JAX keeps the output projection's result as it comes out of the matmul, a whole copy on
    # every tensor device. (The attention backends name their own results.)
    "dots": jax.checkpoint_policies.save_only_these_names("attention", "projection"),
    "full": jax.checkpoint_policies.nothing_saveable,
}


def rope_frequencies(config: LlamaConfig) -> Float[Array, " half_head"]:
    """Angular frequencies of the rotary embedding, float32, with Llama-3's scaling when its factor is not 1.

    Wavelengths longer than `original_max_position / low_freq_factor` are stretched by the factor, those shorter than
    `original_max_position / high_freq_factor` are kept, and those between are interpolated.
    """
    half = jnp.arange(0, config.head_dim, 2, dtype=jnp.float32)
    frequencies = 1.0 / (config.rope_theta ** (half / config.head_dim))
    if config.rope_scaling_factor == 1.0:
        return frequencies
    low, high = config.rope_low_freq_factor, config.rope_high_freq_factor
    wavelengths = 2 * math.pi / frequencies
    kept = (config.rope_original_max_position / wavelengths - low) / (high - low)
    kept = jnp.clip(kept, 0.0, 1.0)
    return frequencies * (kept + (1 - kept) / config.rope_scaling_factor)


def rotate(x_BTNH: Array, sin_BTH: Array, cos_BTH: Array) -> Array:
    """Rotates the pairs (i, i + H/2) of every head: Hugging Face's half-split layout. sin, cos: [B, T, H/2]."""
    first, second = jnp.split(x_BTNH, 2, axis=-1)
    sin, cos = sin_BTH[:, :, None, :], cos_BTH[:, :, None, :]
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def project(x: Array, weight: Array) -> Array:
    """Contracts all axes of `x` after [B, T] with the first ones of `weight`: [B, T, D] x [D, N, H] -> [B, T, N, H].

    On one device it is one matrix product with a row for each token. Written over B and T apart, its gradient contracts
    two axes, for which XLA on CPU makes transposed copies of the activations: a tenth of a training step. On a mesh B
    and T stay apart: of a sum of partial products over both as one axis, XLA cannot scatter positions, and reduces all
    of it on every tensor device.
    """
    B, T, *inner = x.shape
    mesh = jax.sharding.get_abstract_mesh()
    if not mesh.empty and mesh.size > 1:
        return jnp.tensordot(x, weight, axes=len(inner))
    matrix = weight.reshape(math.prod(inner), -1)
    return (x.reshape(B * T, -1) @ matrix).reshape(B, T, *weight.shape[len(inner) :])


def _kept(x: Array) -> Array:
    """A matmul's result that `remat = "dots"` keeps for the backward pass."""
    return checkpoint_name(x, "projection")


def dropout(x: Array, *, rate: float, key: Array | None) -> Array:
    """Inverted dropout; the identity at rate 0 or without a key (evaluation)."""
    if rate == 0.0 or key is None:
        return x
    keep = jax.random.bernoulli(key, 1.0 - rate, x.shape)
    return jnp.where(keep, x / (1.0 - rate), jnp.zeros((), x.dtype))


def _weight(key: Array, shape: tuple[int, ...], axes: tuple[str, ...], std: float) -> nnx.Param:
    return nnx.Param(std * jax.random.normal(key, shape, jnp.float32), axes=axes)


class RMSNorm(nnx.Module):
    """Root-mean-square norm, computed in float32."""

    def __init__(self, config: LlamaConfig):
        self.eps = config.norm_eps
        self.scale = nnx.Param(jnp.ones((config.dim,), jnp.float32), axes=("norm",))

    def __call__(self, x_BTD: Array) -> Array:
        """Normalises the last axis; keeps the dtype of its input."""
        x = x_BTD.astype(jnp.float32)
        x = x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + self.eps)
        return (x * self.scale[...]).astype(x_BTD.dtype)


class Attention(nnx.Module):
    """Grouped-query attention within segments."""

    def __init__(self, config: LlamaConfig, *, options: ComputeOptions, rngs: nnx.Rngs):
        D, N, K, H = config.dim, config.num_heads, config.num_kv_heads, config.head_dim
        std = config.init_std
        self.options = options
        self.query = _weight(rngs.params(), (D, N, H), ("embed", "heads", "head_dim"), std)
        self.key = _weight(rngs.params(), (D, K, H), ("embed", "kv_heads", "head_dim"), std)
        self.value = _weight(rngs.params(), (D, K, H), ("embed", "kv_heads", "head_dim"), std)
        # Projections back into the residual stream start smaller, so that its variance does not grow with depth.
        out_std = std / math.sqrt(2 * config.num_layers)
        self.output = _weight(rngs.params(), (N, H, D), ("heads", "head_dim", "embed"), out_std)

    def __call__(self, x_BTD: Array, *, rope: tuple[Array, Array], segment_ids_BT: Array, key: Array | None) -> Array:
        """Attends causally within segments; `rope` holds sin and cos of [B, T, H/2]."""
        q_BTNH = rotate(_kept(project(x_BTD, self.query[...])), *rope)
        k_BTKH = rotate(_kept(project(x_BTD, self.key[...])), *rope)
        v_BTKH = _kept(project(x_BTD, self.value[...]))
        q_BTNH = constrain(q_BTNH, ("batch", "sequence", "act_heads", None))
        k_BTKH = constrain(k_BTKH, ("batch", "sequence", "act_kv_heads", None))
        v_BTKH = constrain(v_BTKH, ("batch", "sequence", "act_kv_heads", None))
        mixed_BTNH = attention(
            q_BTNH,
            k_BTKH,
            v_BTKH,
            segment_ids_BT=segment_ids_BT,
            dropout_rate=self.options.dropout_attention if key is not None else 0.0,
            dropout_key=key,
            backend=self.options.attention,
            partition=Partition(
                batch=DEFAULT_RULES.mesh_axes("batch"),
                heads=DEFAULT_RULES.mesh_axes("act_heads"),
            ),
        )
        return project(mixed_BTNH, self.output[...])


class MLP(nnx.Module):
    """SwiGLU feed-forward."""

    def __init__(self, config: LlamaConfig, *, rngs: nnx.Rngs):
        D, F, std = config.dim, config.mlp_dim, config.init_std
        self.gate = _weight(rngs.params(), (D, F), ("embed", "mlp"), std)
        self.up = _weight(rngs.params(), (D, F), ("embed", "mlp"), std)
        self.down = _weight(rngs.params(), (F, D), ("mlp", "embed"), std / math.sqrt(2 * config.num_layers))

    def __call__(self, x_BTD: Array) -> Array:
        """Returns [B, T, D]."""
        h_BTF = nnx.silu(_kept(project(x_BTD, self.gate[...]))) * _kept(project(x_BTD, self.up[...]))
        h_BTF = constrain(h_BTF, ("batch", "sequence", "act_mlp"))
        return project(h_BTF, self.down[...])


# Between matmuls the tensor devices share out the positions: norms and residuals are computed, and layer inputs kept,
# once and not once on each of them (sequence parallelism: Korthikanti et al. 2022, 2205.05198). Each change of layout
# names both ends. That makes one reduce-scatter of a sum of partial products, forward and backward; with only the last
# layout given, the compiler may gather the whole batch.
WHOLE = ("batch", "sequence", "act_embed")
RESIDUAL = ("batch", "residual", "act_embed")


def _through_layouts(x_BTD: Array, *layouts: LogicalAxes) -> Array:
    for layout in layouts:
        x_BTD = constrain(x_BTD, layout)
    return x_BTD


def _all_positions(x_BTD: Array) -> Array:
    return _through_layouts(x_BTD, RESIDUAL, WHOLE)


def _own_positions(x_BTD: Array) -> Array:
    return _through_layouts(x_BTD, WHOLE, RESIDUAL)


class Block(nnx.Module):
    """One pre-norm transformer layer."""

    def __init__(self, config: LlamaConfig, *, options: ComputeOptions, rngs: nnx.Rngs):
        self.options = options
        self.attention_norm = RMSNorm(config)
        self.attention = Attention(config, options=options, rngs=rngs)
        self.mlp_norm = RMSNorm(config)
        self.mlp = MLP(config, rngs=rngs)

    def __call__(self, x_BTD: Array, *, rope: tuple[Array, Array], segment_ids_BT: Array, key: Array | None) -> Array:
        """Returns the residual stream after this layer."""
        keys = (None, None, None) if key is None else tuple(jax.random.split(key, 3))
        drop = functools.partial(dropout, rate=self.options.dropout_residual)
        norm_BTD = _all_positions(self.attention_norm(x_BTD))
        mixed_BTD = self.attention(norm_BTD, rope=rope, segment_ids_BT=segment_ids_BT, key=keys[0])
        x_BTD = constrain(x_BTD + drop(_kept(_own_positions(mixed_BTD)), key=keys[1]), RESIDUAL)
        mlp_BTD = self.mlp(_all_positions(self.mlp_norm(x_BTD)))
        return constrain(x_BTD + drop(_own_positions(mlp_BTD), key=keys[2]), RESIDUAL)


class Embedding(nnx.Module):
    """The token table."""

    def __init__(self, config: LlamaConfig, *, rngs: nnx.Rngs):
        shape = (config.padded_vocab_size, config.dim)
        self.table = _weight(rngs.params(), shape, ("vocab", "embed"), config.init_std)
        self.table[...] = _zero_padding(self.table[...], axis=0, vocab_size=config.vocab_size)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def look_up(table_VD: Array, tokens_BT: Array, dtype: jnp.dtype) -> Array:
    """Rows of the table as [B, T, D] in `dtype`, laid out as the residual stream; their gradient is summed in float32.

    Under FSDP a device looks up the tokens of all shards in its own slice of the width, and an all-to-all sorts the
    results (and, backwards, their gradients) by token: neither the table nor its gradient ever exists whole.
    """
    tokens_BT = constrain(tokens_BT, ("replica_batch", "sequence"))
    x_BTD = table_VD.astype(dtype)[tokens_BT]
    return _through_layouts(x_BTD, *_LOOK_UP_LAYOUTS)


def _look_up_forward(table_VD, tokens_BT, dtype):
    return look_up(table_VD, tokens_BT, dtype), (table_VD, tokens_BT)


def _look_up_backward(dtype, residuals, d_x_BTD):
    table_VD, tokens_BT = residuals
    tokens_BT = constrain(tokens_BT, ("replica_batch", "sequence"))
    d_x_BTD = _through_layouts(d_x_BTD, *reversed(_LOOK_UP_LAYOUTS))
    return jnp.zeros_like(table_VD, jnp.float32).at[tokens_BT].add(d_x_BTD).astype(table_VD.dtype), None


look_up.defvjp(_look_up_forward, _look_up_backward)
_LOOK_UP_LAYOUTS = (("replica_batch", "sequence", "embed"), ("replica_batch", "residual", "embed"), RESIDUAL)


class Head(nnx.Module):
    """The output projection of an untied network."""

    def __init__(self, config: LlamaConfig, *, rngs: nnx.Rngs):
        shape = (config.dim, config.padded_vocab_size)
        self.kernel = _weight(rngs.params(), shape, ("embed", "vocab"), config.init_std)
        self.kernel[...] = _zero_padding(self.kernel[...], axis=1, vocab_size=config.vocab_size)


def _zero_padding(table: Array, *, axis: int, vocab_size: int) -> Array:
    ids = jax.lax.broadcasted_iota(jnp.int32, table.shape, axis)
    return jnp.where(ids < vocab_size, table, 0.0)


class Llama(nnx.Module):
    """The network. `hidden` gives the final hidden states; the loss applies the head in chunks."""

    def __init__(self, config: LlamaConfig, *, options: ComputeOptions, rngs: nnx.Rngs):
        self.config, self.options = config, options
        self.embedding = Embedding(config, rngs=rngs)

        @nnx.vmap(in_axes=0, out_axes=0)
        def stacked_layers(key: Array) -> Block:
            return Block(config, options=options, rngs=nnx.Rngs(params=key))

        self.layers = stacked_layers(jax.random.split(rngs.params(), config.num_layers))
        self.final_norm = RMSNorm(config)
        if not config.tie_embeddings:
            self.head = Head(config, rngs=rngs)

    @property
    def head_DV(self) -> Array:
        """The output projection; the transposed embedding when tied.

        In the parameters' dtype: the loss casts it itself, so that its gradient is summed up in that dtype.
        """
        return self.embedding.table[...].T if self.config.tie_embeddings else self.head.kernel[...]

    def hidden(
        self,
        tokens_BT: Int[Array, "B T"],
        *,
        segment_ids_BT: Int[Array, "B T"],
        positions_BT: Int[Array, "B T"],
        dropout_key: Array | None = None,
    ) -> Float[Array, "B T D"]:
        """Final-norm hidden states. Attention is causal and within equal, non-zero segment ids.

        `dropout_key` switches dropout on (at the rates of the options).
        """
        config, options = self.config, self.options
        dtype = jnp.dtype(options.compute_dtype)
        angles_BTH = positions_BT.astype(jnp.float32)[:, :, None] * rope_frequencies(config)
        rope = (jnp.sin(angles_BTH).astype(dtype), jnp.cos(angles_BTH).astype(dtype))
        embedding_key, layers_key = (None, None) if dropout_key is None else jax.random.split(dropout_key)

        x_BTD = look_up(self.embedding.table[...], tokens_BT, dtype)
        x_BTD = dropout(x_BTD, rate=options.dropout_embedding, key=embedding_key)

        graphdef, layers = nnx.split(self.layers)
        # Cast before the scan: under FSDP the layers are then gathered in the compute dtype.
        layers = jax.tree.map(lambda w: w.astype(dtype), nnx.to_pure_dict(layers))

        def layer(x_BTD, inputs):
            params, index = inputs
            key = None if layers_key is None else jax.random.fold_in(layers_key, index)
            block = nnx.merge(graphdef, params)
            return block(x_BTD, rope=rope, segment_ids_BT=segment_ids_BT, key=key), None

        if options.remat != "none":
            layer = jax.checkpoint(layer, policy=REMAT_POLICIES[options.remat], prevent_cse=False)
        indices = jnp.arange(config.num_layers)
        unroll = min(options.scan_unroll, config.num_layers)
        x_BTD, _ = jax.lax.scan(layer, x_BTD, (layers, indices), unroll=unroll)
        return constrain(self.final_norm(x_BTD), RESIDUAL)

    def __call__(self, tokens_BT: Int[Array, "B T"], **inputs: Array) -> Float[Array, "B T V"]:
        """Full float32 logits, for decoding and tests; padding ids get -inf. Arguments as for `hidden`."""
        hidden_BTD = _all_positions(self.hidden(tokens_BT, **inputs))
        head_DV = self.head_DV.astype(hidden_BTD.dtype)
        logits_BTV = jnp.einsum("BTD,DV->BTV", hidden_BTD, head_DV, preferred_element_type=jnp.float32)
        logits_BTV = constrain(logits_BTV, ("batch", "sequence", "act_vocab"))
        return jnp.where(jnp.arange(logits_BTV.shape[-1]) < self.config.vocab_size, logits_BTV, -jnp.inf)


@functools.lru_cache(maxsize=32)
def _abstract(config: LlamaConfig, options: ComputeOptions) -> tuple[Any, Any]:
    return nnx.split(nnx.eval_shape(lambda: Llama(config, options=options, rngs=nnx.Rngs(0))))


def init_params(key: Array, *, config: LlamaConfig) -> Params:
    """Random parameters (float32): normal with `init_std`, ones for norms. Pure: jit it with out_shardings."""
    model = Llama(config, options=ComputeOptions(), rngs=nnx.Rngs(params=key))
    return nnx.to_pure_dict(nnx.split(model)[1])


def abstract_params(config: LlamaConfig) -> Params:
    """Shapes and dtypes of the parameters, without allocating them."""
    return nnx.to_pure_dict(_abstract(config, ComputeOptions())[1])


def param_axes(config: LlamaConfig) -> Params:
    """Logical axis names of every parameter: same tree as the parameters, a tuple of names for each."""

    def axes(path, variable):
        names = variable.get_metadata()["axes"]
        return ("layers", *names) if path[0].key == "layers" else names

    state = _abstract(config, ComputeOptions())[1]
    tree = jax.tree_util.tree_map_with_path(axes, state, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable))
    return nnx.to_pure_dict(tree)


def bind(params: Params, *, config: LlamaConfig, options: ComputeOptions) -> Llama:
    """The network with these parameters; cheap, to be called inside jit."""
    return nnx.merge(_abstract(config, options)[0], params)
