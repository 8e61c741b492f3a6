"""The target of a trace: what a mesh, an array or the default device says."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from kernels import device


def _abstract_mesh(platform: str, kind: str) -> AbstractMesh:
    described = jax.sharding.AbstractDevice(device_kind=kind, num_cores=None, platform=platform)
    return AbstractMesh((1,), ("x",), abstract_device=described)


def test_eager_and_traced_on_this_cpu():
    assert device.current_target() == device.Target(platform="cpu", kind="cpu")
    seen = []
    jax.jit(lambda x: seen.append(device.current_target(x)) or x)(jnp.ones(2))
    assert seen == [device.Target(platform="cpu", kind="cpu")]
    assert seen[0].major == 0


@pytest.mark.parametrize(
    ("platform", "kind", "expected", "capability", "major"),
    [
        ("gpu", "NVIDIA A100-SXM4-80GB", "cuda", "sm80", 8),
        ("gpu", "NVIDIA A100 80GB PCIe", "cuda", "sm80", 8),
        ("gpu", "NVIDIA A10G", "cuda", "sm86", 8),
        ("gpu", "NVIDIA H100 80GB HBM3", "cuda", "sm90", 9),
        ("gpu", "NVIDIA H200", "cuda", "sm90", 9),
        ("gpu", "NVIDIA GH200 480GB", "cuda", "sm90", 9),
        ("gpu", "NVIDIA L4", "cuda", "sm89", 8),
        ("gpu", "NVIDIA L40S", "cuda", "sm89", 8),
        ("gpu", "NVIDIA GeForce RTX 4090", "cuda", "sm89", 8),
        ("gpu", "NVIDIA GeForce RTX 3090", "cuda", "sm86", 8),
        ("gpu", "NVIDIA B200", "cuda", "sm100", 10),
        ("gpu", "NVIDIA GB300", "cuda", "sm103", 10),
        ("gpu", "Tesla T4", "cuda", "sm75", 7),
        ("gpu", "Tesla V100-SXM2-32GB", "cuda", "sm70", 7),
        ("gpu", "NVIDIA of the future", "cuda", None, 0),
        ("gpu", "AMD Instinct MI300X", "rocm", None, 0),
        ("tpu", "TPU v5", "tpu", None, 0),
    ],
)
def test_the_surrounding_mesh_decides(platform, kind, expected, capability, major):
    mesh, seen = _abstract_mesh(platform, kind), []

    def traced(x):
        seen.append(device.current_target(x))
        return x

    with jax.sharding.use_abstract_mesh(mesh):
        jax.eval_shape(traced, jax.ShapeDtypeStruct((2,), jnp.float32))
    assert seen == [device.Target(platform=expected, kind=kind, capability=capability)]
    assert seen[0].major == major


def test_without_a_mesh_around_the_array_decides():
    mesh, seen = _abstract_mesh("gpu", "NVIDIA H100 80GB HBM3"), []
    x = jax.ShapeDtypeStruct((2,), jnp.float32, sharding=NamedSharding(mesh, PartitionSpec()))
    jax.eval_shape(lambda x: seen.append((device.current_target(x), device.current_target())) or x, x)
    assert [target.platform for target in seen[0]] == ["cuda", "cpu"]


def test_a_mesh_of_attached_devices():
    with jax.set_mesh(Mesh(np.array(jax.devices()), ("x",))):
        assert device.current_target().platform == "cpu"
