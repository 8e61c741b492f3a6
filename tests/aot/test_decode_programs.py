"""The kernel of decoding and whole bursts of Llama-2 7B and 70B on 8 H100, compiled without a GPU."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from allam_jax.generation.engine import COMPILER_OPTIONS
from allam_jax.generation.programs import Programs
from allam_jax.generation.slots import Slots
from allam_jax.model.kv_cache import KVCache
from allam_jax.model.llama import abstract_params, apart, param_axes
from allam_jax.model.llama_config import ComputeOptions, preset
from allam_jax.parallel.mesh import make_mesh
from allam_jax.parallel.sharding import parameter_shardings
from allam_jax.planning.hlo import Module, parse_program
from kernels import aot
from kernels.attention import decoding_triton
from kernels.workshop import measure

SLOTS, CAPACITY, MIB = 32, 4096, 2**20
# Query heads, key/value heads, head size of one GPU: 7B whole, 70B over eight, SmolLM2, 8B in float32.
SHAPES = [(32, 32, 128, "bfloat16"), (8, 1, 128, "bfloat16"), (9, 3, 64, "bfloat16"), (32, 8, 128, "float32")]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kind", ["a100", "h100"])
def test_the_kernel_is_sound(kind, shape):
    N, K, H, dtype = shape
    cache = jax.ShapeDtypeStruct((2, SLOTS, CAPACITY, K, H), jnp.dtype(dtype))
    call = functools.partial(decoding_triton.attention, scale=H**-0.5)
    arguments = [
        jax.ShapeDtypeStruct((SLOTS, N, H), jnp.dtype(dtype)),
        cache,
        cache,
        jax.ShapeDtypeStruct((), jnp.int32),
        jax.ShapeDtypeStruct((SLOTS,), jnp.int32),
    ]
    compiled, limits = measure.compile_for(kind, call, arguments), aot.limits(kind)
    (kernel,) = [kernel for kernel in compiled.kernels if kernel.name == "decoding_attention"]
    assert kernel.spills == 0
    assert kernel.shared_memory <= limits.shared_memory_per_block
    assert kernel.occupancy(limits).blocks >= 1
    assert kernel.arch == {"a100": "sm_80", "h100": "sm_90a"}[kind]
    assert (kernel.tensor_macs > 0) == (dtype == "bfloat16")
    assert math.prod(kernel.grid) >= 132  # every multiprocessor of an H100 has something to do
    # Results of the parts, and no slice of the cache.
    assert compiled.temp_bytes < 4 * MIB < CAPACITY * SLOTS * K * H


@functools.cache
def burst(name: str) -> tuple[aot.CompileReport, Module, dict, KVCache]:
    """The program, and what of its arguments lies on one GPU."""
    config = preset(name)
    mesh = make_mesh({"tensor": 8}, devices=aot.topology("h100", hosts=1, gpus_per_host=8))
    stacked = abstract_params(config)
    shardings = parameter_shardings(param_axes(config), abstract_params=stacked, mesh=mesh)

    def placed(shape, dtype, spec) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))

    params = jax.tree.map(lambda a, s: placed(a.shape, jnp.bfloat16, s.spec), stacked, shardings)
    layer = jax.tree.map(lambda a: placed(a.shape[1:], a.dtype, PartitionSpec(*a.sharding.spec[1:])), params["layers"])
    params |= {"layers": (layer,) * config.num_layers}
    assert jax.tree.structure(params) == jax.tree.structure(jax.eval_shape(apart, stacked))
    cache = jax.eval_shape(
        functools.partial(KVCache.empty, config, slots=SLOTS, capacity=CAPACITY, dtype=jnp.dtype(jnp.bfloat16))
    )
    cache = KVCache(*(placed(a.shape, a.dtype, cache.spec(mesh)) for a in cache))
    texts = jax.tree.map(lambda a: placed(a.shape, a.dtype, PartitionSpec()), Slots(SLOTS, CAPACITY).texts)
    programs = Programs(config, ComputeOptions(compute_dtype="bfloat16", remat="none"), 16)
    with jax.set_mesh(mesh):
        decode = jax.jit(Programs.decode, static_argnums=0, donate_argnums=2, compiler_options=COMPILER_OPTIONS["cuda"])
        report = aot.compile_report(decode.lower(programs, params, cache, texts, np.int32(SLOTS)), kernels=False)
    return report, parse_program(report.hlo_text), params, cache


def bytes_on_a_gpu(tree) -> int:
    return sum(math.prod(a.sharding.shard_shape(a.shape)) * a.dtype.itemsize for a in jax.tree.leaves(tree))


@pytest.mark.parametrize("name", ["llama2_7b", pytest.param("llama2_70b", marks=pytest.mark.long)])
def test_a_burst_reads_weights_once_and_leaves_the_cache_where_it_is(name):
    report, module, params, cache = burst(name)
    assert report.argument_bytes >= bytes_on_a_gpu((params, cache))
    layer = params["layers"][0]
    smallest = min(bytes_on_a_gpu(a) for a in jax.tree.leaves(layer) if len(a.shape) > 1)
    config = preset(name)
    logits = 4 * SLOTS * config.padded_vocab_size
    # Neither a copy of the weights of a layer, nor of a layer of the cache: some logits and activations.
    assert report.temp_bytes < 8 * logits
    written = [
        instruction
        for computation in module.computations.values()
        for instruction in computation.instructions.values()
        if instruction.opcode in ("copy", "concatenate", "dynamic-slice", "all-gather", "all-gather-done")
        and any(shape.dtype == "bf16" and shape.bytes >= smallest for shape in instruction.shapes)
    ]
    assert not written
    gathered = [
        instruction
        for computation in module.computations.values()
        for instruction in computation.instructions.values()
        if instruction.opcode in ("all-gather", "all-gather-done", "all-to-all", "collective-permute")
    ]
    assert all(instruction.bytes <= 2 * logits for instruction in gathered)
