"""Compares published bf16 training speeds with the planner's: `python -m benchmarks.published_speeds`.

Flags: `--fit` fits the efficiencies of `gpu_cluster.EFFICIENCIES` anew and prints them, `--compile` compiles our own
step for the rows whose layout we have.

The rows are from four frameworks, for 1 to 76 billion parameters, tensor, fully sharded and plain data parallelism.
Each describes the differences of its framework to ours: what it recomputes, whether its attention materializes the
scores, how it synchronises gradients. Of LLM Foundry's benchmark all rows are taken that have models from 1B on,
sequences of 2,048 to 8,192 tokens, bf16 and FULL_SHARD. Runs with pipeline parallelism are left out, because the
planner has no pipelines. torchtitan's rows on H100 stand apart (`OTHER_H100`): that H100 has 96 GB of HBM2e at 2.4 TB/s
and runs at 500 W. They were taken out after the first fit had predicted them badly.

Every other row of a kind of GPU is fitted. The others are held out, and only they are evidence.
"""

import csv
import dataclasses
import math
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

from allam_jax.model.llama_config import ComputeOptions, LlamaConfig, preset
from allam_jax.parallel.gpus import GPUS
from allam_jax.planning.compiled_step import compile_step
from allam_jax.planning.gpu_cluster import EFFICIENCIES, Cluster, Efficiency
from allam_jax.planning.memory import Memory
from allam_jax.planning.roofline import step_time
from allam_jax.planning.workload import Remat, Workload, collectives_of_step, work_of_step
from allam_jax.training.optimizer import make_optimizer
from allam_jax.training.run_description import RunDescription
from allam_jax.training.schedules import make_schedule
from allam_jax.training.settings import GuardSettings, OptimizerSettings, ScheduleSettings

# torchtitan's "selective op" keeps attention and every second matmul; Megatron's "selective" recomputes attention only.
KEEP = Remat(projections=0, down=0, attention=0, elementwise=0)
HALF = Remat(projections=0.5, down=0.5, attention=0, elementwise=1)
ATTENTION_ONLY = Remat(projections=0, down=0, attention=1, elementwise=0)
HALF_LAYERS = Remat(projections=0.5, down=0.5, attention=0.5, elementwise=0.5)  # every second layer as a whole
# What frameworks cost more than a compiled step (`Workload`), fitted together with the efficiencies. Without a
# compiler, PyTorch runs each small operation as a kernel of its own. The kernels of LLM Foundry's runs, of 2023, were
# made for older GPUs than the H100.
UNFUSED, OLDER_MATMUL, OLDER_ATTENTION = 1.327, 1.219, 3.050
EVERYTHING = Remat(projections=1, down=1, attention=1, elementwise=1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Published:
    """One published run. `seconds` is the time of a step; `source` names the published figure."""

    name: str
    source: str
    gpu: str
    gpus: int
    workload: Workload
    seconds: float

    @property
    def cluster(self) -> Cluster:
        """The GPUs of the run in nodes of eight."""
        return Cluster(gpu=GPUS[self.gpu], nodes=-(-self.gpus // 8), gpus_per_node=min(self.gpus, 8))

    @property
    def ours(self) -> RunDescription:
        """Our own step with the same model and layout. Only for a `remat` that is one of our policies."""
        w = self.workload
        assert isinstance(w.remat, str)
        schedule = make_schedule(ScheduleSettings(name="constant", peak_lr=3e-4, warmup_steps=0), total_steps=1)
        return RunDescription(
            model=w.model,
            options=ComputeOptions(compute_dtype=w.compute_dtype, remat=w.remat),
            optimizer=make_optimizer(OptimizerSettings(), schedule=schedule, guard=GuardSettings()),
            mesh=w.mesh,
            batch_size=w.tokens_per_step // w.seq_len,
            seq_len=w.seq_len,
            accumulation=w.accumulation,
            param_dtype="float32",
            z_loss=0.0,
            loss_chunks=w.loss_chunks,
            num_sources=1,
        )

    def predict_compiled(self) -> tuple[float, Memory]:
        """Seconds and memory of our own step with the same model and layout, from the compiled program."""
        step = compile_step(self.ours, cluster=self.cluster)
        return step_time(step.work, step.collectives, cluster=self.cluster, dtype="bfloat16").total, step.memory

    def predict(self, workload: Workload | None = None, assumed: Efficiency | None = None) -> float:
        """Seconds of a step by the analytic model; of another workload or with other shares, where given."""
        cluster = dataclasses.replace(self.cluster, assumed=assumed)
        described = workload or self.workload
        collectives = collectives_of_step(described, cluster=cluster)
        return step_time(work_of_step(described), collectives, cluster=cluster, dtype="bfloat16").total


def _llama(
    name: str | LlamaConfig,
    remat: str | Remat,
    *,
    fsdp: int,
    rows: int,
    seq_len: int = 4096,
    gathers: int = 7,
    unfused: float = 1.0,
) -> Workload:
    return Workload(
        model=preset(name) if isinstance(name, str) else name,
        mesh={"data": 1, "fsdp": fsdp, "tensor": 1},
        rows=rows,
        accumulation=1,
        seq_len=seq_len,
        remat=remat,
        backward_attention_matmuls=5,
        gathers=gathers,
        unfused=unfused,
    )


def _gpt_model(*, dim: int, layers: int, heads: int) -> LlamaConfig:
    """A GPT: two MLP matrices of width 4 D, as many elements as three of 8/3 D."""
    return dataclasses.replace(
        preset("llama2_7b"),
        dim=dim,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=dim // heads,
        mlp_dim=round(8 * dim / 3),
        vocab_size=51_200,
        tie_embeddings=True,
    )


def _gpt(
    *,
    dim: int,
    layers: int,
    heads: int,
    tensor: int,
    data: int,
    rows: int,
    remat: Remat,
    accumulation: int = 1,
    sequence_parallel: bool = False,
) -> Workload:
    return Workload(  # Megatron's attention materializes scores
        model=_gpt_model(dim=dim, layers=layers, heads=heads),
        mesh={"data": data, "fsdp": 1, "tensor": tensor},
        rows=rows,
        accumulation=accumulation,
        seq_len=2048,
        remat=remat,
        attention="materialized",
        backward_attention_matmuls=4,
        loss_chunks=1,
        sequence_parallel=sequence_parallel,
    )


def megatron_seconds(*, model: LlamaConfig, batch: int, gpus: int, tflops: float) -> float:
    """Seconds of an iteration from the published rate, with the paper's count of operations (2104.04473, eq. 3)."""
    T, L, D, V = 2048, model.num_layers, model.dim, 51_200
    return 96 * batch * T * L * D**2 * (1 + T / (6 * D) + V / (16 * L * D)) / (gpus * tflops * 1e12)


# Megatron sums the gradients of its micro-batches before it reduces them; our step reduces those of every micro-batch.
# The rows therefore have micro-batches of 16 rows: one per replica, or two for 18.4B.
def _megatron(
    name: str, *, gpus: int, batch: int, tflops: float, rows: int, tensor: int, dim: int, layers: int, heads: int
) -> Published:
    data = gpus // tensor
    workload = _gpt(
        dim=dim,
        layers=layers,
        heads=heads,
        tensor=tensor,
        data=data,
        rows=rows,
        accumulation=batch // (data * rows),
        remat=EVERYTHING,
    )
    return Published(
        name=f"Megatron-LM GPT {name}, {gpus} A100",
        source=f"2104.04473, table 1: {tflops:.0f} TFLOP/s",
        gpu="a100",
        gpus=gpus,
        workload=workload,
        seconds=megatron_seconds(model=workload.model, batch=batch, gpus=gpus, tflops=tflops),
    )


def _titan_8b_h100(label: str, *, speed: float, unfused: float = UNFUSED) -> Published:
    return Published(
        name=f"torchtitan Llama-3.1 8B, selective op, {label}, 8 H100",
        source=f"torchtitan benchmarks, table 1 (H100 with 96 GB HBM2e at 500 W): {speed:,.0f} tokens/s/GPU",
        gpu="h100",
        gpus=8,
        workload=_llama("llama3_8b", HALF, fsdp=8, rows=2, seq_len=8192, gathers=1, unfused=unfused),
        seconds=2 * 8192 / speed,
    )


def _titan(
    name: str | LlamaConfig, label: str, remat: str | Remat, *, rows: int, speed: float, seq_len: int = 4096
) -> Published:
    return Published(
        name=f"torchtitan {label}, 64 A100",
        source=f"torchtitan docs/performance.md: {speed:,.0f} tokens/s/GPU",
        gpu="a100",
        gpus=64,
        workload=_llama(
            name, remat, fsdp=64, rows=rows, seq_len=seq_len, gathers=1, unfused=UNFUSED
        ),  # FSDP2 flattens a layer
        seconds=rows * seq_len / speed,
    )


_LLAMA3_70B = dataclasses.replace(preset("llama2_70b"), vocab_size=128_256, rope_theta=500_000.0, max_position=8192)

# d_model, layers and heads of MPT (scripts/train/yamls/pretrain of LLM Foundry).
_MPT = {
    "1b": (2048, 24, 16),
    "3b": (2560, 32, 20),
    "7b": (4096, 32, 32),
    "13b": (5120, 40, 40),
    "30b": (7168, 48, 56),
    "70b": (8192, 80, 64),
}


def _foundry(row: dict[str, str]) -> Published:
    """A row of llm_foundry_speeds.csv: MPT under PyTorch's FSDP (FULL_SHARD), as its training benchmark prints it."""
    dim, layers, heads = _MPT[row["model"]]
    gpus, rows, accumulation, seq_len = (int(row[key]) for key in ("gpus", "rows", "accumulation", "seq_len"))
    model = dataclasses.replace(_gpt_model(dim=dim, layers=layers, heads=heads), vocab_size=50_368)
    workload = Workload(
        model=model,
        mesh={"data": 1, "fsdp": gpus, "tensor": 1},
        rows=rows,
        accumulation=accumulation,
        seq_len=seq_len,
        remat=EVERYTHING if row["checkpointing"] == "full" else KEEP,
        backward_attention_matmuls=5,
        gathers=1,
        loss_chunks=1,
        unfused=UNFUSED,
        older_matmul=OLDER_MATMUL if row["gpu"] == "h100" else 1.0,
        older_attention=OLDER_ATTENTION if row["gpu"] == "h100" else 1.0,
    )
    kept = "full" if row["checkpointing"] == "full" else "nothing recomputed"
    return Published(
        name=f"LLM Foundry MPT {row['model'].upper()}, {seq_len} x {rows} x {accumulation}, {kept}, "
        f"{gpus} {row['gpu'].replace('_40gb', ' 40 GB').upper()}",
        source=f"LLM Foundry: {int(row['tokens_per_second_per_gpu']):,} tokens/s/GPU",
        gpu=row["gpu"],
        gpus=gpus,
        workload=workload,
        seconds=rows * accumulation * seq_len / int(row["tokens_per_second_per_gpu"]),
    )


def _maxtext_70b(gpus: int, *, fsdp: int, seconds: float) -> Published:
    workload = _llama("llama2_70b", "full", fsdp=fsdp, rows=2)
    return Published(
        name=f"MaxText Llama-2 70B, {gpus} H100",
        source=f"NVIDIA DGX Cloud benchmarking 25.01: {seconds} s; full remat assumed",
        gpu="h100",
        gpus=gpus,
        workload=dataclasses.replace(workload, mesh={"data": gpus // fsdp, "fsdp": fsdp, "tensor": 1}),
        seconds=seconds,
    )


# Weak scaling: 2 rows of 4,096 tokens on each GPU.
SCALING: tuple[Published, ...] = (
    _maxtext_70b(64, fsdp=64, seconds=6.999),
    _maxtext_70b(128, fsdp=128, seconds=7.072),
    _maxtext_70b(256, fsdp=256, seconds=7.153),
    _maxtext_70b(512, fsdp=128, seconds=7.091),
    _maxtext_70b(1024, fsdp=128, seconds=7.084),
    _maxtext_70b(2048, fsdp=128, seconds=7.066),
)

RUNS: tuple[Published, ...] = (
    Published(
        name="MaxText Llama-2 7B, 8 H100",
        source="JAX-Toolbox: 0.72 s, 11,361 tokens/s/GPU; matmuls and attention kept",
        gpu="h100",
        gpus=8,
        workload=_llama("llama2_7b", "dots", fsdp=8, rows=2),
        seconds=0.72,
    ),
    *SCALING,
    _titan("llama2_13b", "Llama-2 13B, nothing recomputed", "none", rows=2, speed=2162),
    _titan("llama2_13b", "Llama-2 13B, selective op", HALF, rows=2, speed=1904),
    _titan("llama2_13b", "Llama-2 13B, selective layer", HALF_LAYERS, rows=2, speed=1914),
    _titan("llama2_70b", "Llama-2 70B, selective op", HALF, rows=1, speed=355),
    _titan("llama2_70b", "Llama-2 70B, full", "full", rows=2, speed=353),
    _titan("llama3_8b", "Llama-3 8B, selective op", HALF, rows=1, speed=2973, seq_len=8192),
    _titan("llama3_8b", "Llama-3 8B, selective layer", HALF_LAYERS, rows=1, speed=2904, seq_len=8192),
    _titan(_LLAMA3_70B, "Llama-3 70B, full", "full", rows=1, speed=331, seq_len=8192),
    _megatron("1.7B", gpus=32, batch=512, tflops=137, rows=16, tensor=1, dim=2304, layers=24, heads=24),
    _megatron("3.6B", gpus=64, batch=512, tflops=138, rows=16, tensor=2, dim=3072, layers=30, heads=32),
    _megatron("7.5B", gpus=128, batch=512, tflops=142, rows=16, tensor=4, dim=4096, layers=36, heads=32),
    _megatron("18.4B", gpus=256, batch=1024, tflops=135, rows=16, tensor=8, dim=6144, layers=40, heads=48),
    Published(
        name="Megatron-LM GPT 22B, 8 A100, full recomputation",
        source="2205.05198, table 5: 1.42 s",
        gpu="a100",
        gpus=8,
        workload=_gpt(dim=6144, layers=48, heads=64, tensor=8, data=1, rows=4, remat=EVERYTHING),
        seconds=1.42,
    ),
    Published(
        name="Megatron-LM GPT 22B, 8 A100, selective, sequence parallel",
        source="2205.05198, table 5: 1.10 s",
        gpu="a100",
        gpus=8,
        workload=_gpt(
            dim=6144, layers=48, heads=64, tensor=8, data=1, rows=4, remat=ATTENTION_ONLY, sequence_parallel=True
        ),
        seconds=1.10,
    ),
    *map(_foundry, csv.DictReader((Path(__file__).parent / "llm_foundry_speeds.csv").read_text().splitlines())),
)

OTHER_H100 = (_titan_8b_h100("compiled", speed=6667, unfused=1.0), _titan_8b_h100("not compiled", speed=5762))


def halves(family: str) -> tuple[list[Published], list[Published]]:
    """The rows of a family of GPUs (`gpu_cluster.EFFICIENCIES`): those that are fitted, and those held out."""
    runs = [run for run in RUNS if GPUS[run.gpu].family == family]
    return runs[::2], runs[1::2]


_SHARES = ("matmul", "attention", "memory", "overlap")
_BOUNDS = ((0.3, 0.85), (0.2, 0.7), (0.6, 0.9), (0.3, 0.9))
_COSTS = ("unfused", "older_matmul", "older_attention")
_COST_BOUNDS = ((1.0, 6.0), (1.0, 2.0), (1.0, 5.0))


def fit() -> str:
    """Fits the shares of both kinds of GPU and the frameworks' costs to the fitted halves; says what came out.

    Robust least squares on the logarithm of predicted over published time. The error band is the 95th percentile of its
    absolute value over the fitted rows: a fit is closer to its own rows than to others.
    """
    import numpy as np
    from scipy.optimize import least_squares

    rows = [(number, run) for number, family in enumerate(EFFICIENCIES) for run in halves(family)[0]]
    width = len(_SHARES)

    def shares(x: Sequence[float], number: int) -> dict[str, float]:
        return dict(zip(_SHARES, x[number * width :], strict=False))

    def logarithm(x: Sequence[float], number: int, run: Published) -> float:
        costs = zip(_COSTS, x[-len(_COSTS) :], strict=True)
        replaced = {name: value for name, value in costs if getattr(run.workload, name) != 1}
        workload = dataclasses.replace(run.workload, **replaced)
        return math.log(run.predict(workload, Efficiency(**shares(x, number))) / run.seconds)

    bounds = [*_BOUNDS * len(EFFICIENCIES), *_COST_BOUNDS]
    start = [(low + high) / 2 for low, high in bounds]
    lowest, highest = zip(*bounds, strict=True)
    found = least_squares(
        lambda x: [logarithm(x, *row) for row in rows],
        start,
        bounds=(lowest, highest),
        loss="soft_l1",
        f_scale=0.05,
        diff_step=1e-3,
    ).x
    lines = [f"{name} = {value:.3f}" for name, value in zip(_COSTS, found[-len(_COSTS) :], strict=True)]
    for number, family in enumerate(EFFICIENCIES):
        errors = [abs(logarithm(found, of, run)) for of, run in rows if of == number]
        lines.append(f"{family}: {shares(found, number)}, error {math.expm1(np.quantile(errors, 0.95)):.3f}")
        held_out = [math.exp(logarithm(found, number, run)) for run in halves(family)[1]]
        lines.append(f"  held out: {summary(held_out)}")
    return "\n".join(lines)


def summary(ratios: Sequence[float]) -> str:
    """The middle and the extremes of predicted over published times."""
    return f"median {statistics.median(ratios):.3f}, {min(ratios):.2f} to {max(ratios):.2f} of {len(ratios)} rows"


def table(runs: Sequence[Published] = RUNS) -> str:
    """A Markdown table of published and predicted step times, and their ratios."""
    lines = [
        "| run | published, s | predicted, s | predicted / published | source |",
        "|---|---|---|---|---|",
    ]
    for run in runs:
        predicted = run.predict()
        lines.append(
            f"| {run.name} | {run.seconds:.2f} | {predicted:.2f} | {predicted / run.seconds:.2f} | {run.source} |"
        )
    return "\n".join(lines)


def scaling_table() -> str:
    """MaxText's weak scaling of Llama-2 70B on H100 beside ours, as a Markdown table."""
    lines = ["| GPUs | published, s | predicted, s | of 64 GPUs: published | predicted |", "|---|---|---|---|---|"]
    first = SCALING[0]
    for run in SCALING:
        relative = run.seconds / first.seconds, run.predict() / first.predict()
        lines.append(
            f"| {run.gpus:,} | {run.seconds:.2f} | {run.predict():.2f} | {relative[0]:.3f} | {relative[1]:.3f} |"
        )
    return "\n".join(lines)


def page() -> str:
    """All tables, as docs/planning.md has them."""
    parts = []
    for family in EFFICIENCIES:
        for title, runs in zip(("fitted", "held out"), halves(family), strict=True):
            ratios = summary([run.predict() / run.seconds for run in runs])
            parts += [f"{family}, {title}: {ratios}", table(runs)]
    return "\n\n".join([*parts, "Weak scaling", scaling_table(), "Other H100", table(OTHER_H100)])


def compiled_table(runs: Sequence[Published] = RUNS) -> str:
    """The table for our own compiled step with the models and layouts of the runs whose remat policy is ours."""
    lines = ["| model and layout of | published, s | our step as compiled, s | ratio |", "|---|---|---|---|"]
    for run in runs:
        if isinstance(run.workload.remat, str):
            predicted, memory = run.predict_compiled()
            ratio = f"{predicted / run.seconds:.2f}" if memory.fits else f"does not fit: {memory.total / 2**30:.0f} GiB"
            lines.append(f"| {run.name} | {run.seconds:.2f} | {predicted:.2f} | {ratio} |")
    return "\n".join(lines)


if __name__ == "__main__":
    flags = sys.argv[1:]
    sys.stdout.write((compiled_table() if "--compile" in flags else fit() if "--fit" in flags else page()) + "\n")
