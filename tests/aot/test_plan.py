"""Task `plan` for 70B on 1,024 A100, as a command: what the compiler says against hand counts and formulas."""

import dataclasses
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest

from allam_jax.planning.compiled_step import compile_step
from allam_jax.planning.gpu_cluster import cluster_of
from allam_jax.planning.run_plan import RunPlan
from allam_jax.tasks import plan
from allam_jax.tasks.registry import settings_of
from allam_jax.training.run_description import described_run
from configs import allam_70b, sizes
from tests.planning.small_runs import small_config

ROOT = Path(__file__).resolve().parents[2]


@dataclasses.dataclass(frozen=True)
class Planned:
    result: dict
    saved: dict
    seconds: float
    peak_bytes: int


@pytest.fixture(scope="module")
def planned(tmp_path_factory) -> Planned:
    workdir = tmp_path_factory.mktemp("plan")
    command = [sys.executable, "run.py", "--config", "configs/allam_70b.py", "--config.task=plan"]
    environment = {key: value for key, value in os.environ.items() if key not in ("JAX_PLATFORMS", "XLA_FLAGS")}
    started = time.monotonic()
    done = subprocess.run(
        [*command, "--workdir", str(workdir)], capture_output=True, text=True, cwd=ROOT, env=environment
    )
    seconds = time.monotonic() - started
    assert done.returncode == 0, done.stderr[-3000:]
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    return Planned(json.loads(done.stdout), json.loads((workdir / "plan.json").read_text()), seconds, peak)


@pytest.fixture(scope="module")
def formula():
    config = settings_of(allam_70b.get_config(), task="plan")
    cluster = cluster_of(config.plan)
    run = described_run(config, device_count=cluster.size)
    return RunPlan(run=run, cluster=cluster)


def test_it_answers_within_two_minutes_and_6_gb(planned):
    assert planned.seconds <= 120
    assert planned.peak_bytes <= 6e9


def test_argument_bytes_by_hand(planned):
    """Each of 1,024 GPUs: 1/128 of the matrices (fsdp 128, tensor 1), whole norms, two moments, one row of a batch."""
    D, L, V, F, N, K, H = 8192, 80, 64_000, 28_672, 64, 8, 128
    matrices = 2 * V * D + L * (2 * D * N * H + 2 * D * K * H + 3 * D * F)
    parameters = 4 * (matrices // 128 + 2 * L * D + D)
    guard = 4 * (128 + 128) + 4 * 4
    optimizer = 2 * parameters + guard + 4 + 4 + 4 + 8  # step, updates, learning rate, rng
    batch = 6 * 4 * 4096
    memory = planned.saved["memory"]
    assert (memory["parameters"], memory["optimizer"], memory["batch"]) == (parameters, optimizer, batch)
    # The compiler counts the same but for the learning rate, which the step writes and never reads.
    assert planned.saved["compiled"]["argument_bytes"] == parameters + optimizer + batch - 4


def test_products_and_kernels(planned, formula):
    assert planned.saved["compiled"]["uncounted_kernels"] == []
    assert len(planned.saved["compiled"]["kernels"]) >= 2
    assert planned.saved["flops"]["hardware"] == pytest.approx(formula.hardware_flops, rel=0.02)
    assert planned.saved["flops"]["model"] == pytest.approx(formula.model_flops)


@pytest.mark.parametrize(
    ("gpu", "backend", "kernels"), [("a100", "triton", "attention_"), ("h100", "mosaic", "mosaic_attention_")]
)
def test_the_kernels_of_both_backends_are_counted(gpu, backend, kernels):
    """By hand: under full rematerialisation, two matmuls on visible pairs in each forward pass, seven backward."""
    rows, T, N, H, layers = 8, 512, 4, 128, 2
    config = allam_70b.get_config()
    config.model.update(vocab_size=512, dim=N * H, num_layers=layers, num_heads=N, num_kv_heads=N, mlp_dim=1024)
    config.compute.update(remat="full", attention=backend)
    config.mesh.update(data=1, fsdp=1, tensor=1)
    config.data.update(seq_len=T, batch_size=rows)
    config.train.accumulation = 1
    config.plan.update(gpu=gpu, nodes=1, gpus_per_node=1)
    settings = settings_of(config, task="plan")
    compiled = compile_step(described_run(settings, device_count=1), cluster=cluster_of(settings.plan))
    assert compiled.uncounted == ()
    assert {name.startswith(kernels) for name in compiled.kernels} == {True}
    counted = sum(piece.flops * piece.count for piece in compiled.work if piece.kind == "kernel")
    assert counted == pytest.approx(layers * (2 + 2 + 7) * 2 * rows * N * H * T * (T + 1) / 2, rel=0.01)


def test_memory_and_time_are_near_the_formulas(planned, formula):
    assert planned.saved["memory"]["total"] == pytest.approx(formula.memory.total, rel=0.15)
    assert planned.saved["seconds"]["total"] == pytest.approx(formula.time.total, rel=0.15)
    assert planned.saved["memory"]["fits"]


def test_collectives(planned):
    """Parameters cross the network in bfloat16, twice gathered and once scattered, beside other work."""
    layers = 80 * (2 * 8192 * 64 * 128 + 2 * 8192 * 8 * 128 + 3 * 8192 * 28_672) * 2
    large = [each for each in planned.saved["collectives"] if each["payload_bytes"] * each["count"] > layers / 100]
    assert all(each["asynchronous"] for each in large)
    assert {each["dtype"] for each in large} == {"bf16"}
    by_kind = {}
    for each in large:
        if each["axes"] == ["fsdp"]:
            by_kind[each["kind"]] = by_kind.get(each["kind"], 0) + each["payload_bytes"] * each["count"]
    assert by_kind == {
        "all-gather": pytest.approx(2 * layers, rel=0.02),
        "reduce-scatter": pytest.approx(layers, rel=0.02),
    }
    # fsdp 128 fills 16 nodes of 8.
    assert {each["ranks_per_node"] for each in large if each["axes"] == ["fsdp"]} == {8}
    assert all(each["crosses_nodes"] for each in large)


def test_a_billion_parameters_fit_one_card_of_24_gb():
    config = settings_of(sizes.get_config("1b_24gb"), task="plan")
    cluster = cluster_of(config.plan)
    run = described_run(config, device_count=1)
    step = compile_step(run, cluster=cluster)
    assert run.model.num_parameters > 1e9
    assert step.memory.total < 0.95 * cluster.usable_bytes
    assert any("attention_forward" in name for name in step.kernels), step.kernels  # Triton's, for sm_89


@pytest.mark.long
def test_a_search_compiles_the_layout_of_the_config_too(tmp_path):
    """The formula asks for more memory than the compiled step here, so it alone would leave the layout out."""
    config = small_config(data=8)
    config.model.update(vocab_size=512, dim=256, mlp_dim=512, num_heads=4, num_kv_heads=2, head_dim=64)
    config.data.seq_len = 256
    settings = settings_of(config)
    cluster = cluster_of(settings.plan)
    run = described_run(settings, device_count=cluster.size)
    by_formula = RunPlan(run=run, cluster=cluster).memory.total
    compiled = RunPlan(run=run, cluster=cluster, compiled=compile_step(run, cluster=cluster)).memory.total
    assert compiled < by_formula
    between = (compiled + by_formula) / 2 / cluster.usable_share
    config.plan.update(compile=True, search=True, search_compiles=1, memory_gib=between / 2**30)
    plan.run(settings_of(config), tmp_path)
    candidates = json.loads((tmp_path / "plan.json").read_text())["candidates"]
    own = {**run.mesh, "remat": run.options.remat, "accumulation": run.accumulation}
    assert own in [{key: each["layout"][key] for key in own} for each in candidates]
