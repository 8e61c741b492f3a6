"""Reading compiled kernels: NVIDIA's published occupancy figures, and dumps whose numbers are known."""

import dataclasses
import re

import pytest

from kernels import aot, ptx

A100 = ptx.Limits(
    capability="sm80",
    shared_memory_per_block=163 * 1024,
    shared_memory_per_core=164 * 1024,
    registers_per_core=65536,
    threads_per_core=2048,
)

KERNEL = ptx.Kernel(name="k", arch="sm_80", threads=128, shared_memory=0, registers=32)


@pytest.mark.parametrize(
    ("threads", "registers", "shared_memory", "blocks", "bound"),
    [
        # By hand, from the rules of the CUDA C++ Programming Guide: a warp takes registers in units of 256.
        (128, 32, 0, 16, "registers"),  # 65536 / (32 * 32) = 64 warps = 16 blocks; as many as the threads allow
        (128, 255, 0, 2, "registers"),  # 8160 -> 8192 a warp: 8 warps
        (256, 128, 0, 2, "registers"),  # 4096 a warp: 16 warps
        (256, 129, 0, 1, "registers"),  # 4128 -> 4352 a warp: 15 warps, 12 in whole groups of four: one block of 8
        (128, 32, 48 * 1024, 3, "shared memory"),  # 164 KiB / (48 + 1)
        (128, 32, 163 * 1024, 1, "shared memory"),
        (1024, 16, 0, 2, "threads"),
        (32, 16, 0, 32, "blocks"),
    ],
)
def test_occupancy(threads, registers, shared_memory, blocks, bound):
    kernel = dataclasses.replace(KERNEL, threads=threads, registers=registers, shared_memory=shared_memory)
    occupancy = kernel.occupancy(A100)
    assert (occupancy.blocks, occupancy.bound) == (blocks, bound)
    assert occupancy.share == blocks * threads / 2048


PTX = """
.version 9.0
.target sm_80
.visible .entry first(.param .u64 p)
.reqntid 64, 1, 1
{ mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {a}, {b};
  mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {a}, {b}; }
.visible .entry second(.param .u64 p)
{ wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {a}, b, c; wgmma.wait_group.sync.aligned 0; }
"""
THUNKS = """
001: kCustomKernel [source | sink] first grid: [8, 2, 1] threads: [64, 1, 1]  shared_memory: 1024 bytes
 body:
  002: kKernel       [prev=001 (1) | sink] second grid: [4, 1, 1] threads: [256, 1, 1]  shared_memory: 0 bytes
"""
WORDS = """ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'second' for 'sm_90a'
ptxas info    : Function properties for second
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 20 registers, used 1 barriers, 512 bytes smem
ptxas info    : (C7510) Potential Performance Loss: wgmma.mma_async instructions are serialized due to ... 'second'
ptxas info    : Compiling entry function 'first' for 'sm_80'
ptxas info    : Function properties for first
    8 bytes stack frame, 12 bytes spill stores, 16 bytes spill loads
ptxas info    : Used 255 registers
"""


def _read(tmp_path, thunks):
    for folder in ("xla", "mosaic"):
        (tmp_path / folder).mkdir()
    (tmp_path / "xla" / "module.ptx").write_text(PTX)
    (tmp_path / "xla" / "module.thunk_sequence.txt").write_text(thunks)
    return ptx.read_dumps(tmp_path / "xla", tmp_path / "mosaic", hlo_text="", ptxas=lambda file: WORDS)


def test_kernels_of_one_file_are_told_apart(tmp_path):
    first, second = _read(tmp_path, THUNKS)
    assert first == dataclasses.replace(
        KERNEL,
        name="first",
        grid=(8, 2, 1),
        threads=64,
        shared_memory=1024,
        registers=255,
        spills=12 + 16,
        mma_sync=2,
        tensor_macs=2 * (16 * 8 * 16 + 16 * 8 * 8),  # two warps
    )
    assert (second.arch, second.registers, second.spills, second.shared_memory) == ("sm_90a", 20, 0, 512)
    assert (first.wgmma_serialised, second.wgmma_serialised) == (False, True)
    assert (second.mma_kind, second.wgmma, second.tensor_macs) == ("wgmma", 1, 2 * 64 * 128 * 16)


def test_a_launch_without_assembly_text_is_an_error(tmp_path):
    with pytest.raises(RuntimeError, match="third"):
        _read(tmp_path, THUNKS + THUNKS.replace("second", "third"))


def test_described_gpus_have_the_limits_of_their_data_sheets():
    assert aot.limits("a100") == A100
    h100 = aot.limits("h100")
    assert h100.capability == "sm90"
    assert (h100.shared_memory_per_block, h100.shared_memory_per_core) == (227 * 1024, 228 * 1024)


def test_an_unknown_gpu_is_named_with_those_that_are_known():
    with pytest.raises(ValueError, match=re.escape("'tpu' is not described; expected one of a100, h100")):
        aot.topology("tpu")
