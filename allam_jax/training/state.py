"""What a training step changes, where it lives on the mesh, and how it starts."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from allam_jax.model.llama import LORA, Params, abstract_params, init_params, param_axes
from allam_jax.model.llama_config import LlamaConfig
from allam_jax.model.low_rank import abstract_adapters, adapter_axes, new_adapters
from allam_jax.model.settings import LoraSettings
from allam_jax.parallel.sharding import fitting, optimizer_shardings, parameter_shardings
from allam_jax.training.trainable import Trainable


class TrainState(NamedTuple):
    """Everything a step reads and writes; with the data position it is all that a resume needs.

    Leaves are arrays, or `jax.ShapeDtypeStruct`s with shardings in an abstract state.
    """

    step: Any  # updates tried so far, int32
    params: Params
    optimizer: Any  # moments, guard and counters
    rng: Any  # key data, uint32; the key of a step is folded from it, so it never changes


def abstract_state(
    config: LlamaConfig,
    *,
    optimizer: optax.GradientTransformation,
    mesh: Mesh | AbstractMesh,
    param_dtype: str = "float32",
    lora: LoraSettings = LoraSettings(),  # noqa: B008 (frozen)
    trainable: Trainable = Trainable(),  # noqa: B008 (frozen)
) -> TrainState:
    """Shapes, dtypes and shardings of the state, without allocating it; moments exist for what is trained."""
    params = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, jnp.dtype(param_dtype)), abstract_params(config))
    axes = param_axes(config)
    if lora.rank:
        params, axes = params | {LORA: abstract_adapters(config, lora)}, axes | {LORA: adapter_axes(config, lora)}
    shardings = parameter_shardings(axes, abstract_params=params, mesh=mesh)
    trained = jax.eval_shape(trainable.select, params)
    trained_shardings = jax.tree.map(fitting, _like(trained, shardings), trained)
    moments = jax.eval_shape(optimizer.init, trained)
    replicated = NamedSharding(mesh, PartitionSpec())

    def place(shape: Any, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding)

    return TrainState(
        step=jax.ShapeDtypeStruct((), jnp.int32, sharding=replicated),
        params=jax.tree.map(place, params, shardings),
        optimizer=jax.tree.map(
            place, moments, optimizer_shardings(moments, abstract_params=trained, shardings=trained_shardings)
        ),
        rng=jax.ShapeDtypeStruct((2,), jnp.uint32, sharding=replicated),
    )


def _like(part: Params, whole: Params) -> Params:
    """The leaves of `whole` at the places that `part` has."""
    return {name: _like(value, whole[name]) if isinstance(value, dict) else whole[name] for name, value in part.items()}


def shardings_of(tree: Any) -> Any:
    """The tree of shardings of a tree of (abstract) arrays."""
    return jax.tree.map(lambda leaf: leaf.sharding, tree)


def random_params(abstract: Params, *, config: LlamaConfig, seed: int) -> Params:
    """Random parameters, created directly as `abstract` lays them out; the same for every mesh."""

    def create(key: jax.Array) -> Params:
        return jax.tree.map(lambda p, a: p.astype(a.dtype), init_params(key, config=config), abstract)

    return jax.jit(create, out_shardings=shardings_of(abstract))(jax.random.key(seed))


def with_new_adapters(
    params: Params, abstract: Params, *, config: LlamaConfig, settings: LoraSettings, seed: int
) -> Params:
    """The parameters with adapters that change nothing yet, laid out as `abstract` says; unchanged for rank 0."""
    if not settings.rank:
        return params
    create = jax.jit(
        lambda key: new_adapters(key, config=config, settings=settings), out_shardings=shardings_of(abstract[LORA])
    )
    return params | {LORA: create(jax.random.key(seed))}


def start_state(
    params: Params,
    *,
    abstract: TrainState,
    optimizer: optax.GradientTransformation,
    seed: int,
    trainable: Trainable = Trainable(),  # noqa: B008 (frozen)
) -> TrainState:
    """Step 0 with these parameters and without moments. `params` must lie as `abstract.params`."""
    start = jax.jit(
        lambda params: optimizer.init(trainable.select(params)), out_shardings=shardings_of(abstract.optimizer)
    )
    moments = start(params)
    # The data order and the initial parameters use the seed itself; dropout gets a stream of its own.
    rng = jax.random.key_data(jax.random.fold_in(jax.random.key(seed), 1))
    return TrainState(
        step=jax.device_put(jnp.zeros((), jnp.int32), abstract.step.sharding),
        params=params,
        optimizer=moments,
        rng=jax.device_put(rng, abstract.rng.sharding),
    )
