"""Steps of Qwen2.5-7B and Llama-3.1-8B on texts of 32,768 tokens, compiled for 8 H100 without a GPU."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from allam_jax.data.batch import DTYPES
from allam_jax.model.llama_config import ComputeOptions, preset
from allam_jax.parallel.mesh import batch_sharding, make_mesh
from allam_jax.parallel.sharding import pieces
from allam_jax.training.objective import NextToken
from allam_jax.training.optimizer import make_optimizer
from allam_jax.training.settings import GuardSettings, OptimizerSettings
from allam_jax.training.state import abstract_state
from allam_jax.training.step import make_train_step
from kernels import aot

T, GPUS = 32_768, 8
H100_BYTES = 80e9


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("llama3_1_8b", (8, 1)),
        ("qwen2_5_7b", (2, 4)),
        pytest.param("llama3_1_8b", (2, 4), marks=pytest.mark.long),
        pytest.param("qwen2_5_7b", (8, 1), marks=pytest.mark.long),
    ],
)
def test_a_step_fits_80_gb(name, sizes):
    fsdp, tensor = sizes
    config = dataclasses.replace(preset(name), max_position=131_072)
    mesh = make_mesh(
        {"data": 1, "fsdp": fsdp, "tensor": tensor}, devices=aot.topology("h100", hosts=1, gpus_per_host=GPUS)
    )
    optimizer = make_optimizer(OptimizerSettings(), schedule=lambda step: jnp.float32(3e-5), guard=GuardSettings())
    state = abstract_state(config, optimizer=optimizer, mesh=mesh)
    shape = (pieces("batch", mesh.shape), T)
    batch = {key: jax.ShapeDtypeStruct(shape, dtype, sharding=batch_sharding(mesh)) for key, dtype in DTYPES.items()}
    options = ComputeOptions(compute_dtype="bfloat16", attention="triton", remat="full")
    step = make_train_step(
        NextToken(model=config, options=options, num_chunks=32), optimizer=optimizer, abstract=state, num_sources=1
    )
    report = aot.compile_report(step.lower(state, batch), kernels=False)
    used = report.argument_bytes + report.temp_bytes
    print(
        f"{name}, fsdp {fsdp} x tensor {tensor}: {report.argument_bytes / 2**30:.2f} GiB of state and "
        f"{report.temp_bytes / 2**30:.2f} GiB of temporary memory"
    )
    assert 10e9 < used < 0.9 * H100_BYTES
