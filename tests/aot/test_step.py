"""The train step of Llama-2-7B for 8, 64 and 512 H100, compiled without a GPU: memory, collectives, kernels.

One sequence of 4,096 tokens a batch shard, full rematerialisation, bfloat16 over float32 parameters, AdamW. Expected
figures come from the sizes of the parameters and of the mesh; the limits of temporary memory are those of the same step
with JAX's sample attention kernel (6.27, 1.91 and 1.50 GiB), and tighter ones that keep what has been won.
"""

import dataclasses
import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from allam_jax.data.batch import DTYPES
from allam_jax.model.llama_config import ComputeOptions, preset
from allam_jax.parallel.mesh import batch_sharding, make_mesh
from allam_jax.parallel.sharding import pieces
from allam_jax.planning.collectives import Collective, collectives_of, device_groups
from allam_jax.planning.hlo import Module, parse_program
from allam_jax.training.objective import NextToken
from allam_jax.training.optimizer import make_optimizer
from allam_jax.training.settings import GuardSettings, OptimizerSettings
from allam_jax.training.state import TrainState, abstract_state
from allam_jax.training.step import make_train_step
from kernels import aot
from kernels.attention import triton
from kernels.attention.contract import Request

CONFIG = preset("llama2_7b")
T, GPUS_PER_NODE = 4096, 8
GIB, MIB = 2**30, 2**20
BATCH_AXES = {"data", "fsdp"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Step:
    """A compiled step."""

    report: aot.CompileReport
    module: Module
    mesh: jax.sharding.Mesh
    state: TrainState
    batch: dict

    @functools.cached_property
    def collectives(self) -> list[Collective]:
        return collectives_of(self.module, mesh=self.mesh, gpus_per_node=GPUS_PER_NODE)


@functools.cache
def compiled(
    *, data: int = 1, fsdp: int, tensor: int, remat: str = "full", accumulation: int = 1, rows: int = 1
) -> Step:
    gpus = data * fsdp * tensor
    devices = aot.topology("h100", hosts=gpus // GPUS_PER_NODE, gpus_per_host=GPUS_PER_NODE)
    mesh = make_mesh({"data": data, "fsdp": fsdp, "tensor": tensor}, devices=devices)
    optimizer = make_optimizer(OptimizerSettings(), schedule=lambda step: jnp.float32(3e-4), guard=GuardSettings())
    state = abstract_state(CONFIG, optimizer=optimizer, mesh=mesh)
    shape = (pieces("batch", mesh.shape) * accumulation * rows, T)
    batch = {key: jax.ShapeDtypeStruct(shape, dtype, sharding=batch_sharding(mesh)) for key, dtype in DTYPES.items()}
    step = make_train_step(
        NextToken(
            model=CONFIG,
            options=ComputeOptions(compute_dtype="bfloat16", attention="triton", remat=remat),
            z_loss=1e-5,
        ),
        optimizer=optimizer,
        abstract=state,
        num_sources=2,
        accumulation=accumulation,
    )
    report = aot.compile_report(step.lower(state, batch), kernels=False)
    return Step(report=report, module=parse_program(report.hlo_text), mesh=mesh, state=state, batch=batch)


FSDP_8 = {"fsdp": 8, "tensor": 1}
FSDP_8_TENSOR_8 = {"fsdp": 8, "tensor": 8}
FSDP_64_TENSOR_8 = {"fsdp": 64, "tensor": 8}
DATA_8_FSDP_8 = {"data": 8, "fsdp": 8, "tensor": 1}
MESHES = pytest.mark.parametrize("sizes", [FSDP_8, FSDP_8_TENSOR_8, FSDP_64_TENSOR_8], ids=["8", "64", "512"])
ALL_MESHES = pytest.mark.parametrize(
    "sizes", [FSDP_8, FSDP_8_TENSOR_8, FSDP_64_TENSOR_8, DATA_8_FSDP_8], ids=["8", "64", "512", "64 data"]
)


@pytest.mark.parametrize(
    ("sizes", "temp_gib", "argument_gib"),
    [(FSDP_8, 5.6, 9.42), (FSDP_8_TENSOR_8, 0.95, 1.18), (FSDP_64_TENSOR_8, 0.60, 0.15)],
    ids=["8", "64", "512"],
)
def test_memory(sizes, temp_gib, argument_gib):
    step = compiled(**sizes)
    assert step.report.temp_bytes / GIB <= temp_gib
    leaves = jax.tree.leaves((step.state, step.batch))
    sharded = sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves)
    # The learning rate of the step before is only ever overwritten: no argument of the program.
    assert step.report.argument_bytes == sharded - step.state.optimizer.learning_rate.dtype.itemsize
    assert step.report.argument_bytes / GIB == pytest.approx(argument_gib, abs=0.01)


def test_dots_keeps_the_residual_stream_cut_over_tensor():
    """A whole copy of one result of [T, D] in each layer would be 1 GiB more; kept are q, k, v, gate, up, attention's
    results, and slices of the residual stream."""
    config, step = CONFIG, compiled(**FSDP_8_TENSOR_8, remat="dots")
    widths = (4 * config.num_heads * config.head_dim + 2 * config.mlp_dim + 2 * config.dim) / 8
    log_z = 4 * config.num_heads / 8
    kept = config.num_layers * T * (2 * widths + log_z)
    assert kept < step.report.temp_bytes < kept + GIB
    assert not [c for c in step.collectives if c.kind == "all-reduce" and c.payload_bytes > MIB]


def matmul_parameters(sizes, *, layers: int) -> int:
    """Elements of the weights of `layers` layers, whole over fsdp, on one of the tensor devices."""
    config = CONFIG
    attention = 2 * config.dim * config.head_dim * (config.num_heads + config.num_kv_heads)
    return layers * (attention + 3 * config.dim * config.mlp_dim) // sizes["tensor"]


def head_parameters(sizes) -> int:
    return CONFIG.dim * CONFIG.padded_vocab_size // sizes["tensor"]


def bytes_of(step: Step, kind: str, *, over: set[str]) -> int:
    return sum(c.payload_bytes * c.count for c in step.collectives if c.kind == kind and set(c.axes) & over)


@ALL_MESHES
def test_weights_are_gathered_in_bfloat16_once_forward_and_once_backward(sizes):
    step = compiled(**sizes)
    tokens = np.prod(step.batch["tokens"].shape) // sizes.get("data", 1) * 4  # their ids, for the embedding
    weights = 2 * (2 * matmul_parameters(sizes, layers=CONFIG.num_layers) + head_parameters(sizes))
    assert bytes_of(step, "all-gather", over=BATCH_AXES) == weights + tokens


@ALL_MESHES
def test_gradients_of_weights_are_reduce_scattered_in_bfloat16(sizes):
    step = compiled(**sizes)
    weights = 2 * (matmul_parameters(sizes, layers=CONFIG.num_layers) + head_parameters(sizes))
    assert bytes_of(step, "reduce-scatter", over=BATCH_AXES) == weights


@MESHES
def test_no_large_all_reduce_and_nothing_large_in_float32(sizes):
    step = compiled(**sizes)
    for collective in step.collectives:
        large = collective.payload_bytes > MIB
        assert not (large and collective.kind == "all-reduce"), collective
        # Token ids are s32; what is float32 are sums of the loss and of norms, gradients of norms and log Z.
        assert not (large and "f32" in collective.dtype), collective


@pytest.mark.long
def test_positions_of_several_rows_are_scattered_too():
    # As one axis of rows and positions they could not be: all of it would be reduced on every tensor device.
    one, two = (compiled(**FSDP_8_TENSOR_8, rows=rows) for rows in (1, 2))
    assert not [c for c in two.collectives if c.kind == "all-reduce" and c.payload_bytes > MIB]
    scattered = [bytes_of(step, "reduce-scatter", over={"tensor"}) for step in (one, two)]
    assert scattered[1] == 2 * scattered[0] > 0


def test_between_replicas_only_slices_of_gradients_are_all_reduced():
    step = compiled(**DATA_8_FSDP_8)
    large = [c for c in step.collectives if c.kind == "all-reduce" and c.payload_bytes > MIB]
    assert {c.axes for c in large} == {("data",)}
    # The embedding's gradient is summed in float32 on each device, and stays so.
    table = 4 * CONFIG.padded_vocab_size * CONFIG.dim
    weights = 2 * (matmul_parameters(DATA_8_FSDP_8, layers=CONFIG.num_layers) + head_parameters(DATA_8_FSDP_8))
    assert sum(c.payload_bytes * c.count for c in large) == (weights + table) // 8


def gathers_of_more_than_weights(module: Module, *, mesh, rows: int, config=CONFIG) -> list[tuple[str, tuple]]:
    """All-gathers over the batch's axes of what has not the size of a weight and is no token id, and gathers over
    tensor of more than this device's own rows of hidden states: (shape as text, axes)."""
    D, tensor = config.dim, mesh.shape["tensor"]
    weights = {D * n // tensor for n in (config.num_heads * config.head_dim, config.mlp_dim, config.padded_vocab_size)}
    found = []
    for name in module.runs():
        for instruction in module.computations[name].instructions.values():
            kind = instruction.opcode.removesuffix("-start")
            if kind != "all-gather":
                continue
            groups = device_groups(instruction.attributes, kind=kind, device_count=mesh.size)
            coordinates = np.unravel_index(groups, tuple(mesh.shape.values()))
            axes = {a for a, along in zip(mesh.shape, coordinates, strict=True) if np.any(along != along[:, :1])}
            for shape in results_of(instruction):
                allowed = shape.size in weights if axes & BATCH_AXES else shape.size <= rows * T * D
                if not allowed and shape.dtype != "s32":
                    found.append((f"{shape.dtype}{list(shape.dims)}", tuple(sorted(axes))))
    return found


def results_of(instruction):
    """The results of a collective; one that is started also gives its operands back, before them."""
    if instruction.opcode.endswith("-start"):
        return instruction.shapes[len(instruction.operands) :]
    return instruction.shapes


@ALL_MESHES
def test_no_batch_and_no_logits_are_gathered(sizes):
    step = compiled(**sizes)
    assert gathers_of_more_than_weights(step.module, mesh=step.mesh, rows=1) == []


def test_the_check_sees_a_kernel_outside_of_shard_map():
    """The compiler cannot look into a kernel: it gathers the whole batch for it."""
    mesh = make_mesh({"data": 1, "fsdp": 8, "tensor": 1}, devices=aot.topology("h100", gpus_per_host=8))
    heads = NamedSharding(mesh, PartitionSpec("fsdp"))
    q_BTNH = jax.ShapeDtypeStruct((8, T, 2, 128), jnp.bfloat16, sharding=heads)
    segment_ids_BT = jax.ShapeDtypeStruct((8, T), jnp.int32, sharding=heads)

    def attend(q_BTNH, segment_ids_BT):
        return triton.attention(q_BTNH, q_BTNH, q_BTNH, Request(segment_ids_BT=segment_ids_BT, scale=1.0)).out_BTNH

    with jax.set_mesh(mesh):
        report = aot.compile_report(jax.jit(attend).lower(q_BTNH, segment_ids_BT), kernels=False)
    found = gathers_of_more_than_weights(parse_program(report.hlo_text), mesh=mesh, rows=1)
    assert any(axes == ("fsdp",) for _, axes in found), found


@ALL_MESHES
def test_no_collective_permutes(sizes):
    """XLA makes them of a gather and a slice that cancel out, with no pairs at all, which gives zeros."""
    step = compiled(**sizes)
    opcodes = {i.opcode for name in step.module.runs() for i in step.module.computations[name].instructions.values()}
    assert not [opcode for opcode in opcodes if opcode.startswith("collective-permute")]


def kernel_runs(step: Step) -> dict[str, int]:
    """Kernel -> how often it runs in a step."""
    runs: dict[str, int] = {}
    for name, times in step.module.runs().items():
        for instruction in step.module.computations[name].instructions.values():
            found = re.search(r"attention_(forward|dq|dkv)", instruction.attributes + instruction.name)
            if instruction.opcode == "custom-call" and found:
                runs[found[1]] = runs.get(found[1], 0) + times
    return runs


@pytest.mark.parametrize(("remat", "forward"), [("full", 2), ("dots", 1)])
def test_attention_is_repeated_only_under_full_rematerialisation(remat, forward):
    L = CONFIG.num_layers
    runs = kernel_runs(compiled(**FSDP_8_TENSOR_8, remat=remat))
    assert runs == {"forward": forward * L, "dq": L, "dkv": L}


def test_matmuls_are_bfloat16():
    """All operands of matrix products, in and outside of fusions; sums are float32 inside of them."""
    step = compiled(**FSDP_8)
    operands = set()
    for computation in step.module.computations.values():
        for instruction in computation.instructions.values():
            gemm = instruction.opcode == "custom-call" and "gemm" in instruction.attributes
            if instruction.opcode == "dot" or gemm:
                operands |= {operand.shapes[0].dtype for operand in computation.operands(instruction)[:2]}
    assert operands == {"bf16"}
