"""LoRA: a weight W is used as W + f A B, of which only A and B are trained (Hu et al. 2021, 2106.09685).

The adapters are parameters beside those of the network, under the key `lora`:

    params["lora"]["layers"]["attention"]["query"] = {"a": [L, D, r], "b": [L, r, N, H], "factor": [L]}

`a` has the inputs of the weight and `b` its outputs; `factor` is alpha / sqrt(r) if rank-stabilised (Kalajdzievski
2023, 2312.03732), else alpha / r, and is not trained. The network computes x W + f (x A) B, so that a small difference
is not lost in the rounding of W. `merged` adds it to W. b begins at 0: a new adapter changes nothing.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from allam_jax.errors import UserError
from allam_jax.model.llama import LORA, Params, abstract_params, param_axes
from allam_jax.model.llama_config import LlamaConfig
from allam_jax.model.settings import LORA_TARGETS, LoraSettings

_INPUT_AXES = {"output": 2}  # how many axes of a layer's weight are inputs, where that is not 1


def abstract_adapters(config: LlamaConfig, settings: LoraSettings) -> Params:
    """The adapters as `jax.ShapeDtypeStruct`s, float32; {} for rank 0."""
    return _tree(config, settings, lambda place, weight: _shapes(place, weight.shape, settings.rank))


def adapter_axes(config: LlamaConfig, settings: LoraSettings) -> Params:
    """The tree of the adapters with a tuple of logical axis names at each leaf."""
    axes = param_axes(config)

    def one(place: tuple[str, str], _: Any) -> Params:
        layers, *names = _at(axes, place)
        split = _INPUT_AXES.get(place[1], 1)
        return {
            "a": (layers, *names[:split], None),
            "b": (layers, None, *names[split:]),
            "factor": (layers,),
        }

    return _tree(config, settings, one)


def new_adapters(key: jax.Array, *, config: LlamaConfig, settings: LoraSettings) -> Params:
    """Adapters that change nothing yet: `a` uniform within 1 / sqrt(inputs), as in PEFT, and `b` zero."""
    factor = settings.alpha / (math.sqrt(settings.rank) if settings.rank_stabilised else settings.rank)

    def one(place: tuple[str, str], weight: Any) -> Params:
        shapes = _shapes(place, weight.shape, settings.rank)
        bound = 1 / math.sqrt(math.prod(shapes["a"].shape[1:-1]))
        own = jax.random.fold_in(key, LORA_TARGETS.index(place[1]))
        return {
            "a": jax.random.uniform(own, shapes["a"].shape, jnp.float32, -bound, bound),
            "b": jnp.zeros(shapes["b"].shape, jnp.float32),
            "factor": jnp.full(shapes["factor"].shape, factor, jnp.float32),
        }

    return _tree(config, settings, one)


def merged(params: Params) -> Params:
    """The parameters of the network alone, with the adapters added to its weights, in their dtypes and places."""
    if LORA not in params:
        return params
    adapters = params[LORA]["layers"]

    def one(path: tuple[Any, ...], weight: jax.Array) -> jax.Array:
        room, name = (entry.key for entry in path[:2])
        found = adapters.get(room, {}).get(name) if len(path) == 2 else None
        return weight if found is None else jax.jit(_added, out_shardings=weight.sharding)(weight, found)

    layers = jax.tree_util.tree_map_with_path(one, params["layers"])
    return {name: value for name, value in params.items() if name != LORA} | {"layers": layers}


def _added(weight: jax.Array, adapter: Params) -> jax.Array:
    a, b, factor = adapter["a"], adapter["b"], adapter["factor"]
    with jax.default_matmul_precision("highest"):
        both = jax.vmap(lambda a, b: jnp.tensordot(a, b, axes=1))(a, b)
    factors = factor.reshape(-1, *(1,) * (weight.ndim - 1))
    return (weight.astype(jnp.float32) + factors * both).astype(weight.dtype)


def _tree(config: LlamaConfig, settings: LoraSettings, one: Any) -> Params:
    """A tree with what `one` gives for each target."""
    if not settings.rank:
        return {}
    weights, found = abstract_params(config), dict[str, Any]()
    for name in LORA_TARGETS:
        if name in settings.targets:
            room = "mlp" if name in weights["layers"]["mlp"] else "attention"
            found.setdefault(room, {})[name] = one((room, name), _at(weights, (room, name)))
    return {"layers": found}


def _at(tree: Params, place: tuple[str, str]) -> Any:
    return tree["layers"][place[0]][place[1]]


def _shapes(place: tuple[str, str], shape: tuple[int, ...], rank: int) -> dict[str, jax.ShapeDtypeStruct]:
    layers, *rest = shape
    split = _INPUT_AXES.get(place[1], 1)
    inputs, outputs = rest[:split], rest[split:]
    if rank > min(math.prod(inputs), math.prod(outputs)):
        raise UserError(
            f"config.lora.rank = {rank}: {place[1]} has only {min(map(math.prod, (inputs, outputs)))} ranks"
        )
    shapes = {"a": (layers, *inputs, rank), "b": (layers, rank, *outputs), "factor": (layers,)}
    return {name: jax.ShapeDtypeStruct(shape, np.float32) for name, shape in shapes.items()}
