"""Llama in flax.nnx: RMSNorm, rotary positions, grouped-query attention, SwiGLU; layers stacked and scanned.

Mistral without a window is the same network. Qwen2 adds biases to q, k and v, Qwen3 norms of every head of q and k;
`LlamaConfig.model_type` says which.

Shapes: B batch, T sequence, D model width, N query heads, K key/value heads, H head size, F feed-forward width,
V padded vocabulary, L layers. `LlamaConfig` describes a network. Its parameters are a plain nested dict that lives
outside of the network (`init_params`); `bind` joins both for one forward pass:

    hidden_BTD = bind(params, config=config, options=options).hidden(tokens_BT, ...)

`hidden` runs three parts, which can also be run one by one: `embed`, `apply_layers` and `finish`.
"""

import functools
import math
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from allam_jax.model import layouts
from allam_jax.model.embedding import look_up
from allam_jax.model.kv_cache import Memory
from allam_jax.model.llama_config import ComputeOptions, LlamaConfig
from allam_jax.model.primitives import REMAT_POLICIES, RMSNorm, dropout, kept, parameter
from allam_jax.model.products import adapted, turned
from allam_jax.model.rope import Rope, rope_of, rotate
from allam_jax.parallel.sharding import constrain
from kernels.attention.api import attention

Params = dict[str, Any]  # nested dict of arrays
LORA = "lora"  # key of adapters beside the parameters of the network, see `low_rank.py`
AnyMemory = TypeVar("AnyMemory", bound=Memory | None)


class Biases(nnx.Module):
    """What Qwen2 adds to q, k and v."""

    def __init__(self, config: LlamaConfig):
        N, K, H = config.num_heads, config.num_kv_heads, config.head_dim
        self.query = nnx.Param(jnp.zeros((N, H), jnp.float32), axes=("heads", "head_dim"))
        self.key = nnx.Param(jnp.zeros((K, H), jnp.float32), axes=("kv_heads", "head_dim"))
        self.value = nnx.Param(jnp.zeros((K, H), jnp.float32), axes=("kv_heads", "head_dim"))


class Attention(nnx.Module):
    """Grouped-query attention, causal and within segments."""

    def __init__(self, config: LlamaConfig, *, options: ComputeOptions, rngs: nnx.Rngs):
        D, N, K, H = config.dim, config.num_heads, config.num_kv_heads, config.head_dim
        std = config.init_std
        self.options = options
        self.adapters: Params | None = None  # see `bind`
        self.query = parameter(rngs.params(), (D, N, H), ("embed", "heads", "head_dim"), std)
        self.key = parameter(rngs.params(), (D, K, H), ("embed", "kv_heads", "head_dim"), std)
        self.value = parameter(rngs.params(), (D, K, H), ("embed", "kv_heads", "head_dim"), std)
        # Projections back into the residual stream start smaller, so that its variance does not grow with depth.
        out_std = std / math.sqrt(2 * config.num_layers)
        self.output = parameter(rngs.params(), (N, H, D), ("heads", "head_dim", "embed"), out_std)
        self.bias = Biases(config) if config.qkv_bias else None
        self.query_norm = RMSNorm(H, eps=config.norm_eps) if config.qk_norm else None
        self.key_norm = RMSNorm(H, eps=config.norm_eps) if config.qk_norm else None

    def __call__(
        self, x_BTD: Array, *, rope: Rope, segment_ids_BT: Array, key: Array | None, memory: Memory | None
    ) -> tuple[Array, Memory | None]:
        """Returns [B, T, D], and the memory with what it keeps of these tokens.

        `key` is for dropout of the attention probabilities. A memory may mix in the values of earlier tokens.
        """
        q_BTNH = rotate(self._heads(x_BTD, "query", norm=self.query_norm), rope)
        k_BTKH = rotate(self._heads(x_BTD, "key", norm=self.key_norm), rope)
        v_BTKH = self._heads(x_BTD, "value")
        q_BTNH = constrain(q_BTNH, layouts.QUERIES)
        k_BTKH, v_BTKH = constrain(k_BTKH, layouts.KEYS), constrain(v_BTKH, layouts.KEYS)
        within_rows = functools.partial(
            attention,
            segment_ids_BT=segment_ids_BT,
            dropout_rate=self.options.dropout_attention if key is not None else 0.0,
            dropout_key=key,
            backend=self.options.attention,
            partition=layouts.ATTENTION,
        )
        if memory is None:
            mixed_BTNH = within_rows(q_BTNH, k_BTKH, v_BTKH)
        else:
            mixed_BTNH, memory = memory.mix(q_BTNH, k_BTKH, v_BTKH, within_rows=within_rows)
        return self._product(mixed_BTNH, "output"), memory

    def _heads(self, x_BTD: Array, name: str, *, norm: RMSNorm | None = None) -> Array:
        """Queries, keys or values [B, T, heads, H] before their rotation."""
        heads = kept(self._product(x_BTD, name))
        if self.bias is not None:
            heads = heads + getattr(self.bias, name)[...]
        return heads if norm is None else norm(heads)

    def _product(self, x: Array, name: str) -> Array:
        return adapted(x, getattr(self, name).get_value(), self.adapters, name, operands=self.options.products)


class MLP(nnx.Module):
    """SwiGLU feed-forward."""

    def __init__(self, config: LlamaConfig, *, options: ComputeOptions, rngs: nnx.Rngs):
        D, F, std = config.dim, config.mlp_dim, config.init_std
        self.options = options
        self.adapters: Params | None = None  # see `bind`
        self.gate = parameter(rngs.params(), (D, F), ("embed", "mlp"), std)
        self.up = parameter(rngs.params(), (D, F), ("embed", "mlp"), std)
        self.down = parameter(rngs.params(), (F, D), ("mlp", "embed"), std / math.sqrt(2 * config.num_layers))

    def __call__(self, x_BTD: Array) -> Array:
        """Returns [B, T, D], the sum over the feed-forward width."""
        h_BTF = nnx.silu(kept(self._product(x_BTD, "gate"))) * kept(self._product(x_BTD, "up"))
        return self._product(constrain(h_BTF, layouts.FEED_FORWARD), "down")

    def _product(self, x: Array, name: str) -> Array:
        return adapted(x, getattr(self, name).get_value(), self.adapters, name, operands=self.options.products)


class Block(nnx.Module):
    """One pre-norm transformer layer."""

    def __init__(self, config: LlamaConfig, *, options: ComputeOptions, rngs: nnx.Rngs):
        self.options = options
        self.attention_norm = RMSNorm(config.dim, eps=config.norm_eps)
        self.attention = Attention(config, options=options, rngs=rngs)
        self.mlp_norm = RMSNorm(config.dim, eps=config.norm_eps)
        self.mlp = MLP(config, options=options, rngs=rngs)

    def __call__(
        self, x_BTD: Array, *, rope: Rope, segment_ids_BT: Array, key: Array | None, memory: Memory | None
    ) -> tuple[Array, Memory | None]:
        """Returns the residual stream after this layer, and its memory; `key` is for dropout."""
        keys = (None, None, None) if key is None else tuple(jax.random.split(key, 3))
        drop = functools.partial(dropout, rate=self.options.dropout_residual)
        norm_BTD = layouts.all_positions(self.attention_norm(x_BTD))
        mixed_BTD, memory = self.attention(
            norm_BTD, rope=rope, segment_ids_BT=segment_ids_BT, key=keys[0], memory=memory
        )
        x_BTD = constrain(x_BTD + drop(kept(layouts.own_positions(mixed_BTD)), key=keys[1]), layouts.RESIDUAL)
        mlp_BTD = self.mlp(layouts.all_positions(self.mlp_norm(x_BTD)))
        return constrain(x_BTD + drop(layouts.own_positions(mlp_BTD), key=keys[2]), layouts.RESIDUAL), memory


class Embedding(nnx.Module):
    """The token table."""

    def __init__(self, config: LlamaConfig, *, rngs: nnx.Rngs):
        shape = (config.padded_vocab_size, config.dim)
        self.table = parameter(rngs.params(), shape, ("vocab", "embed"), config.init_std)
        self.table[...] = _zero_padding(self.table[...], axis=0, vocab_size=config.vocab_size)


class Head(nnx.Module):
    """The output projection of an untied network."""

    def __init__(self, config: LlamaConfig, *, rngs: nnx.Rngs):
        shape = (config.dim, config.padded_vocab_size)
        self.kernel = parameter(rngs.params(), shape, ("embed", "vocab"), config.init_std)
        self.kernel[...] = _zero_padding(self.kernel[...], axis=1, vocab_size=config.vocab_size)


def _zero_padding(table: Array, *, axis: int, vocab_size: int) -> Array:
    ids = jax.lax.broadcasted_iota(jnp.int32, table.shape, axis)
    return jnp.where(ids < vocab_size, table, 0.0)


class Llama(nnx.Module):
    """The network. `hidden` gives the final hidden states; the loss applies the head in chunks.

    `hidden` is `finish(apply_layers(embed(tokens)))`. All parts take the `dropout_key` of the whole pass and derive
    their own keys from it: parts that are run one by one drop the same elements.
    """

    def __init__(self, config: LlamaConfig, *, options: ComputeOptions, rngs: nnx.Rngs):
        self.config, self.options = config, options
        self.embedding = Embedding(config, rngs=rngs)

        @nnx.vmap(in_axes=0, out_axes=0)
        def stacked_layers(key: Array) -> Block:
            return Block(config, options=options, rngs=nnx.Rngs(params=key))

        self.layers = stacked_layers(jax.random.split(rngs.params(), config.num_layers))
        self.layers_apart: tuple[Params, ...] | None = None  # see `bind`
        self.adapters: Params | None = None  # those of the stacked layers, see `bind`
        self.final_norm = RMSNorm(config.dim, eps=config.norm_eps)
        if not config.tie_embeddings:
            self.head = Head(config, rngs=rngs)

    @property
    def head_DV(self) -> Array:
        """The output projection; the transposed embedding when tied.

        It has the parameters' dtype: the loss casts it itself, so that its gradient is summed in that dtype.
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
        x_BTD = self.embed(tokens_BT, dropout_key=dropout_key)
        x_BTD, _ = self.apply_layers(
            x_BTD, segment_ids_BT=segment_ids_BT, positions_BT=positions_BT, dropout_key=dropout_key
        )
        return self.finish(x_BTD)

    def embed(self, tokens_BT: Int[Array, "B T"], *, dropout_key: Array | None = None) -> Float[Array, "B T D"]:
        """The residual stream before the first layer, in the compute dtype."""
        key = None if dropout_key is None else jax.random.split(dropout_key)[0]
        x_BTD = look_up(self.embedding.table[...], tokens_BT, jnp.dtype(self.options.compute_dtype))
        return dropout(x_BTD, rate=self.options.dropout_embedding, key=key)

    def apply_layers(
        self,
        x_BTD: Float[Array, "B T D"],
        *,
        segment_ids_BT: Int[Array, "B T"],
        positions_BT: Int[Array, "B T"],
        memory: AnyMemory = None,  # type: ignore[assignment]  # mypy takes no default for a type variable
        dropout_key: Array | None = None,
        layers: slice = slice(None),
    ) -> tuple[Float[Array, "B T D"], AnyMemory]:
        """The residual stream after the given layers (by default all), from that before them.

        Every layer reads and extends the memory of keys and values if there is one, which is returned too.
        """
        config, options = self.config, self.options
        dtype = jnp.dtype(options.compute_dtype)
        rope = rope_of(positions_BT, config=config, dtype=dtype)
        layers_key = None if dropout_key is None else jax.random.split(dropout_key)[1]
        graphdef, stacked = nnx.split(self.layers)

        def layer(carry, inputs):
            x_BTD, memory = carry
            params, adapters, index = inputs
            key = None if layers_key is None else jax.random.fold_in(layers_key, index)
            block = nnx.merge(graphdef, params)
            for room, of_room in adapters.items():
                getattr(block, room).adapters = nnx.data(of_room)
            of_layer = None if memory is None else memory.of_layer(index)
            return block(x_BTD, rope=rope, segment_ids_BT=segment_ids_BT, key=key, memory=of_layer), None

        if options.remat != "none":
            layer = jax.checkpoint(layer, policy=REMAT_POLICIES[options.remat], prevent_cse=False)
        if self.layers_apart is not None:
            carry = (x_BTD, memory)
            for index in range(config.num_layers)[layers]:
                params = jax.tree.map(lambda w: w.astype(dtype), self.layers_apart[index])
                carry, _ = layer(carry, (params, {}, jnp.int32(index)))
            return carry
        # Cast before the scan: under FSDP the layers are then gathered in the compute dtype.
        stacked, adapters = jax.tree.map(
            lambda w: w.astype(dtype)[layers], (nnx.to_pure_dict(stacked), self.adapters or {})
        )
        indices = jnp.arange(config.num_layers)[layers]
        unroll = max(1, min(options.scan_unroll, len(indices)))
        return jax.lax.scan(layer, (x_BTD, memory), (stacked, adapters, indices), unroll=unroll)[0]

    def finish(self, x_BTD: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        """Final-norm hidden states, from the residual stream after the last layer. `head_DV` turns them into logits."""
        return constrain(self.final_norm(x_BTD), layouts.RESIDUAL)

    def __call__(self, tokens_BT: Int[Array, "B T"], **inputs: Array) -> Float[Array, "B T V"]:
        """Full float32 logits, for tests; padding ids get -inf. Arguments as for `hidden`."""
        hidden_BTD = layouts.all_positions(self.hidden(tokens_BT, **inputs))
        head_DV = self.head_DV.astype(hidden_BTD.dtype)
        logits_BTV = jnp.einsum("BTD,DV->BTV", hidden_BTD, head_DV, preferred_element_type=jnp.float32)
        logits_BTV = constrain(logits_BTV, layouts.LOGITS)
        return jnp.where(jnp.arange(logits_BTV.shape[-1]) < self.config.vocab_size, logits_BTV, -jnp.inf)


@functools.lru_cache(maxsize=32)
def _abstract(config: LlamaConfig, options: ComputeOptions) -> tuple[Any, Any]:
    return nnx.split(nnx.eval_shape(lambda: Llama(config, options=options, rngs=nnx.Rngs(0))))


def init_params(key: Array, *, config: LlamaConfig) -> Params:
    """Random parameters (float32): normal with `init_std`, ones for norms, zeros for biases.

    Jit it with out_shardings on a mesh.
    """
    model = Llama(config, options=ComputeOptions(), rngs=nnx.Rngs(params=key))
    return nnx.to_pure_dict(nnx.split(model)[1])


def abstract_params(config: LlamaConfig) -> Params:
    """The parameters as `jax.ShapeDtypeStruct`s; nothing is allocated."""
    return nnx.to_pure_dict(_abstract(config, ComputeOptions())[1])


def param_axes(config: LlamaConfig) -> Params:
    """The tree of the parameters with a tuple of logical axis names at each leaf."""

    def axes(path, variable):
        names = variable.get_metadata()["axes"]
        return ("layers", *names) if path[0].key == "layers" else names

    state = _abstract(config, ComputeOptions())[1]
    tree = jax.tree_util.tree_map_with_path(axes, state, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable))
    return nnx.to_pure_dict(tree)


def bind(params: Params, *, config: LlamaConfig, options: ComputeOptions) -> Llama:
    """The network with these parameters, stacked or `apart`. It is cheap and meant to be called inside jit.

    Adapters (`low_rank.py`) are used where there are any, beside stacked layers.
    """
    graphdef, state = _abstract(config, options)
    if not isinstance(params["layers"], tuple):
        model = nnx.merge(graphdef, {name: value for name, value in params.items() if name != LORA})
        if LORA in params:
            model.adapters = nnx.data(params[LORA]["layers"])
        return model
    model = nnx.merge(graphdef, params | {"layers": nnx.to_pure_dict(state)["layers"]})
    model.layers_apart = nnx.data(params["layers"])
    return model


def apart(params: Params) -> Params:
    """The same parameters with the layers one by one, in a tuple, for programs that read every weight once.

    In a scan the weights of a layer are a slice of the stacked ones. That slice is a copy, which costs little beside a
    long row's matmuls. To decode one token a text is to read the weights: a copy would double or triple that.
    """
    count = jax.tree.leaves(params["layers"])[0].shape[0]
    return params | {"layers": tuple(jax.tree.map(lambda w, i=i: w[i], params["layers"]) for i in range(count))}


def turned_layers(params: Params) -> Params:
    """Parameters `apart` whose layers have the weights of their products `Turned`, for a few rows on one CPU."""

    def layer(of_layer: Params) -> Params:
        products = {
            room: {name: turned(of_layer[room][name], inputs) for name, inputs in names.items()}
            for room, names in _PRODUCTS.items()
        }
        return of_layer | {room: of_layer[room] | weights for room, weights in products.items()}

    return params | {"layers": tuple(map(layer, params["layers"]))}


# The weights of a layer's products, and how many of their axes are contracted.
_PRODUCTS = {
    "attention": {"query": 1, "key": 1, "value": 1, "output": 2},
    "mlp": {"gate": 1, "up": 1, "down": 1},
}
