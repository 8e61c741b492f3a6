"""Data sheets against the chips: units times clock, memory bus times data rate."""

import re

import pytest

from allam_jax.parallel.gpus import GPUS, known_gpu, peak_flops
from kernels.aot import TARGETS

# Name -> multiprocessors, multiply-adds of 16-bit numbers in each a clock (sums in float32), clock in GHz; bits of the
# memory bus, Gbit/s of each; decimal GB of memory on the board.
CHIPS = {
    "a100": (108, 1024, 1.410, 5120, 3.186, 80),
    "a100_40gb": (108, 1024, 1.410, 5120, 2.430, 40),
    "h100": (132, 2048, 1.830, 5120, 5.238, 80),
    "h200": (132, 2048, 1.830, 6144, 6.250, 141),
    "b200": (148, 4096, 1.856, 8192, 7.813, 180),
    "l40s": (142, 512, 2.490, 384, 18.0, 48),
    "rtx4090": (128, 256, 2.520, 384, 21.0, 24),
}


@pytest.mark.parametrize("name", GPUS)
def test_rates_and_memory_follow_from_the_chip(name):
    units, multiply_adds, gigahertz, bus_bits, gigabits, gigabytes = CHIPS[name]
    gpu = GPUS[name]
    assert gpu.peak_flops["bfloat16"] == pytest.approx(units * multiply_adds * 2 * gigahertz * 1e9, rel=2e-3)
    assert gpu.peak_flops["float16"] == gpu.peak_flops["bfloat16"]
    assert gpu.peak_flops["float32"] == pytest.approx(gpu.peak_flops["bfloat16"] / 2, rel=0.03)  # TF32
    assert gpu.memory_bandwidth == pytest.approx(bus_bits / 8 * gigabits * 1e9, rel=1e-3)
    # The driver keeps some; boards may hold a little more than they are called after.
    assert 0.97 * gigabytes * 1e9 < gpu.memory_bytes < 1.08 * gigabytes * 1e9


@pytest.mark.parametrize("name", TARGETS)
def test_the_compiler_is_told_the_same(name):
    text, gpu = TARGETS[name].read_text(), GPUS[name]
    fields = {field: float(value) for field, value in re.findall(r"^  (\w+): ([\d.]+)", text, re.M)}
    assert fields["core_count"] == CHIPS[name][0]
    assert fields["device_memory_size"] == gpu.memory_bytes
    assert fields["memory_bandwidth"] == pytest.approx(gpu.memory_bandwidth, rel=1e-3)
    assert re.search(r'^device_description_str: "NVIDIA (.+)"', text, re.M)[1] in gpu.device_kinds


@pytest.mark.parametrize(
    ("device_kind", "name"),
    [
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA A100-SXM4-40GB", "a100_40gb"),
        ("A100-SXM4-40GB", "a100_40gb"),  # older drivers
        ("NVIDIA A100-PCIE-40GB", "a100_40gb"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA B200", "b200"),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA GeForce RTX 4090", "rtx4090"),
    ],
)
def test_a_device_finds_its_data_sheet(device_kind, name):
    assert known_gpu(device_kind) is GPUS[name]
    assert peak_flops(device_kind, compute_dtype="bfloat16") == GPUS[name].peak_flops["bfloat16"]


@pytest.mark.parametrize(
    # Slower variants, a part of one, and what is no GPU.
    "device_kind",
    ["NVIDIA H100 PCIe", "NVIDIA H200 NVL", "NVIDIA H200 MIG 1g.18gb", "NVIDIA GeForce RTX 4090 D", "cpu"],
)
def test_another_device_is_not_taken_for_one_that_is_known(device_kind):
    assert known_gpu(device_kind) is None
    assert peak_flops(device_kind, compute_dtype="bfloat16") == 0.0
