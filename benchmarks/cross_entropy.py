"""Predicts memory, traffic and time of the loss on a GPU, and the gain of a hand-written kernel.

It needs requirements-aot.txt and no GPU.

    JAX_PLATFORMS=cpu python benchmarks/cross_entropy.py [--gpus h100,a100] [--chunks 1,2,4]

The benchmark compiles `chunked_cross_entropy` with its gradients for 8 fsdp shards (times 8 tensor shards for some
models) and counts the bytes that every instruction of the optimised program reads and writes. The times are bounds, not
measurements: matmuls run at the share of the peak that long training steps reach, and all else at that share of the
memory's rate (`allam_jax/planning/gpu_cluster.py: EFFICIENCIES`). Two possible kernels are predicted at the same rates:

  epilogue   One kernel computes statistics and gradient of the logits. It reads logits once (4 bytes each) instead of
             twice, and needs all columns of a row on one device.
  no logits  Logits never leave the chip. Their traffic disappears, but the backward pass computes them again with one
             more matmul (as in Wijmans et al. 2024, 2411.09009).
"""

import sys
from pathlib import Path
from typing import NamedTuple

from absl import app, flags

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

GPUS = flags.DEFINE_list("gpus", ["h100", "a100"], "Kinds of GPU in kernels/targets.")
CHUNKS = flags.DEFINE_list("chunks", ["1", "2", "4"], "Numbers of chunks per sequence.")

FSDP = 8
# Bytes per logit: a matmul writes it; two passes read it and one writes its gradient; two matmuls read that.
WRITE_LOGITS, READ_LOGITS, WRITE_D_LOGITS, READ_D_LOGITS = 4, 8, 2, 4


class Shard(NamedTuple):
    """The share of one GPU: rows of 4,096 tokens, model width, whole vocabulary and the GPUs that share it."""

    name: str
    rows: int
    D: int
    V: int
    tensor: int


SHARDS = (
    Shard("Llama-2-7B", 1, 4096, 32_000, 1),
    Shard("Llama-2-7B, 2 rows", 2, 4096, 32_000, 1),
    Shard("Llama-2-70B, tensor 8", 1, 8192, 32_000, 8),
    Shard("Llama-3-8B", 1, 4096, 128_256, 1),
    Shard("Llama-3-70B, tensor 8", 1, 8192, 128_256, 8),
)
T = 4096


class Cost(NamedTuple):
    """Bytes and operations of the compiled loss and its gradients on one GPU."""

    temp: int
    flops: float
    matmul_bytes: float
    other_bytes: float


def compiled_cost(kind: str, shard: Shard, *, chunks: int) -> Cost:
    """Compiles the loss for a kind of GPU and counts its cost."""
    import jax
    import jax.numpy as jnp
    from jax.sharding import NamedSharding, PartitionSpec

    from allam_jax.parallel.mesh import make_mesh
    from allam_jax.planning.hlo import parse_program
    from allam_jax.planning.step_work import work_of
    from allam_jax.training.losses import chunked_cross_entropy
    from kernels import aot

    devices = aot.topology(kind, hosts=shard.tensor, gpus_per_host=FSDP)
    mesh = make_mesh({"data": 1, "fsdp": FSDP, "tensor": shard.tensor}, devices=devices)

    def shaped(shape, dtype, *axes):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, PartitionSpec(*axes)))

    def loss_and_gradients(x_BTD, head_DV, targets_BT, weights_BT):
        def mean(x_BTD, head_DV):
            sums = chunked_cross_entropy(
                x_BTD,
                head_DV,
                targets_BT=targets_BT,
                weights_BT=weights_BT,
                vocab_size=shard.V,
                z_loss=1e-5,
                num_chunks=chunks,
            )
            return sums.total / sums.weight

        return jax.value_and_grad(mean, argnums=(0, 1))(x_BTD, head_DV)

    B = FSDP * shard.rows
    with jax.set_mesh(mesh):
        lowered = jax.jit(loss_and_gradients).lower(
            shaped((B, T, shard.D), jnp.bfloat16, "fsdp"),
            shaped((shard.D, shard.V), jnp.float32, "fsdp", "tensor"),
            shaped((B, T), jnp.int32, "fsdp"),
            shaped((B, T), jnp.float32, "fsdp"),
        )
    report = aot.compile_report(lowered, kernels=False)
    work = work_of(parse_program(report.hlo_text))
    return Cost(
        temp=report.temp_bytes,
        flops=sum(piece.flops * piece.count for piece in work),
        matmul_bytes=sum(piece.bytes * piece.count for piece in work if piece.kind == "matmul"),
        other_bytes=sum(piece.bytes * piece.count for piece in work if piece.kind != "matmul"),
    )


def seconds(kind: str, *, flops: float, matmul_bytes: float, other_bytes: float) -> float:
    """The time of matmuls by operations or traffic, whichever is longer, plus that of all other traffic."""
    from allam_jax.parallel.gpus import GPUS as DATA_SHEETS
    from allam_jax.planning.gpu_cluster import efficiency_of

    gpu = DATA_SHEETS[kind]
    share = efficiency_of(gpu)
    memory = gpu.memory_bandwidth * share.memory
    return max(flops / (gpu.peak_flops["bfloat16"] * share.matmul), matmul_bytes / memory) + other_bytes / memory


def row(kind: str, shard: Shard, *, chunks: int) -> str:
    """A row of the table."""
    cost = compiled_cost(kind, shard, chunks=chunks)
    time = seconds(kind, flops=cost.flops, matmul_bytes=cost.matmul_bytes, other_bytes=cost.other_bytes)
    tokens, columns = shard.rows * T, shard.V // shard.tensor
    logits = tokens * columns
    epilogue = "-"
    if shard.tensor == 1:
        other = cost.other_bytes - 4 * logits
        epilogue = f"{1e3 * seconds(kind, flops=cost.flops, matmul_bytes=cost.matmul_bytes, other_bytes=other):.2f}"
    without = seconds(
        kind,
        flops=cost.flops + 2.0 * logits * shard.D,
        matmul_bytes=cost.matmul_bytes - (WRITE_LOGITS + READ_D_LOGITS) * logits,
        other_bytes=cost.other_bytes - (READ_LOGITS + WRITE_D_LOGITS) * logits,
    )
    return (
        f"| {kind} | {shard.name} | {chunks} | {cost.temp / 2**20:,.0f} | {cost.flops / 1e12:.2f} "
        f"| {cost.matmul_bytes / 1e9:.2f} | {cost.other_bytes / 1e9:.2f} | {1e3 * time:.2f} | {epilogue} "
        f"| {1e3 * without:.2f} |"
    )


def main(argv: list[str]) -> None:
    """Prints the Markdown table."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}")
    print("| GPU | shard | chunks | temp MiB | TFLOP | GB by matmuls | GB beside | ms | ms, epilogue | ms, no logits |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for kind in GPUS.value:
        for shard in SHARDS:
            for chunks in CHUNKS.value:
                print(row(kind, shard, chunks=int(chunks)), flush=True)


if __name__ == "__main__":
    app.run(main)
