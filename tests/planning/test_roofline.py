"""Step times against arithmetic done by hand, and published runs against predictions."""

import dataclasses
import statistics
from pathlib import Path

import pytest

from allam_jax.model.llama_config import preset
from allam_jax.parallel.gpus import GPUS
from allam_jax.planning.collectives import Collective
from allam_jax.planning.gpu_cluster import EFFICIENCIES, Cluster, Efficiency
from allam_jax.planning.plan_report import assumptions
from allam_jax.planning.roofline import collective_seconds, step_time, work_seconds
from allam_jax.planning.run_plan import RunPlan
from allam_jax.planning.step_work import Work
from allam_jax.planning.workload import Workload, collectives_of_step, work_of_step
from benchmarks import published_speeds as published
from tests.planning.small_runs import small_run

SHARES = Efficiency(
    matmul=0.5, attention=0.25, memory=0.5, links=0.5, overlap=0.5, hop_seconds=1e-6, network_hop_seconds=1e-5
)
CLUSTER = Cluster(gpu=GPUS["a100"], nodes=4, gpus_per_node=8, assumed=SHARES)


def piece(kind="matmul", flops=0.0, size=0.0, count=1) -> Work:
    return Work(kind=kind, flops=flops, bytes=size, count=count)


def collective(kind="all-gather", *, axes=("fsdp",), payload=8e9, members=32, on_a_node=8, count=1) -> Collective:
    return Collective(
        kind=kind, axes=axes, dtype="bf16", payload_bytes=int(payload), group_size=members, ranks_per_node=on_a_node,
        count=count,
    )  # fmt: skip


def test_work_takes_the_longer_of_arithmetic_and_memory():
    assert work_seconds(piece(flops=156e12), cluster=CLUSTER, dtype="bfloat16") == pytest.approx(1.0)
    assert work_seconds(piece(flops=78e12), cluster=CLUSTER, dtype="float32") == pytest.approx(1.0)
    assert work_seconds(piece("kernel", flops=78e12), cluster=CLUSTER, dtype="bfloat16") == pytest.approx(1.0)
    assert work_seconds(piece(flops=156e12, size=2.039e12), cluster=CLUSTER, dtype="bfloat16") == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("given", "seconds"),
    [
        # 7/8 of 8 GB over half of 300 GB/s, 7 hops
        (collective(members=8, on_a_node=8), 7e9 / 150e9 + 7e-6),
        # 31/32 of 8 GB; eight adapters of 25 GB/s side by side, half reached; 31 hops over the network
        (collective(), 7.75e9 / 100e9 + 31e-5),
        # one member on each of 4 nodes: one adapter each
        (collective(members=4, on_a_node=1), 6e9 / 12.5e9 + 3e-5),
        # two ways through a tree of 8
        (collective("all-reduce", members=8), 2 * 7e9 / 150e9 + 6e-6),
        (collective("collective-permute", members=2, on_a_node=1), 8e9 / 12.5e9 + 1e-5),
    ],
)
def test_rings(given, seconds):
    assert collective_seconds(given, cluster=CLUSTER) == pytest.approx(seconds)


def test_what_is_hidden_and_what_is_not():
    work = [piece(flops=156e12, count=2), piece("memory", size=1.0195e12)]
    inside = collective("all-reduce", axes=("tensor",), members=8, count=3)
    outside = collective(count=4)
    time = step_time(work, [inside, outside], cluster=CLUSTER, dtype="bfloat16")
    assert (time.matmul, time.memory, time.compute) == pytest.approx((2.0, 1.0, 3.0))
    assert time.tensor == pytest.approx(3 * (14e9 / 150e9 + 6e-6))
    network = 4 * (7.75e9 / 100e9 + 31e-5)
    assert time.hidden == pytest.approx(network / 2)
    assert time.exposed == pytest.approx(network / 2)
    assert time.total == pytest.approx(time.compute + time.tensor + time.exposed)
    short = step_time([piece(flops=1.56e12)], [outside], cluster=CLUSTER, dtype="bfloat16")
    assert short.hidden == pytest.approx(0.01)  # no more than there is compute to hide it
    assert short.total == pytest.approx(0.01 + network - 0.01)


def test_what_runs_alone_is_not_hidden():
    alone = dataclasses.replace(collective(count=4), asynchronous=False)
    time = step_time([piece(flops=156e12)], [alone], cluster=CLUSTER, dtype="bfloat16")
    assert time.hidden == 0
    assert time.exposed == pytest.approx(4 * collective_seconds(alone, cluster=CLUSTER))


def test_energy():
    """1,000 GPU hours at 800 W, half of it drawn, 1.5 times for the building: 0.6 MWh."""
    gpu = dataclasses.replace(GPUS["a100"], watts=800)
    cluster = Cluster(gpu=gpu, nodes=1, gpus_per_node=8, power_share=0.5, pue=1.5)
    assert cluster.megawatt_hours(1000) == pytest.approx(0.6)


@pytest.mark.parametrize("remat", ["none", "dots", "full"])
def test_matmul_flops_of_a_step(remat):
    """6 for each matrix element and token (8 but for `down` with full remat); attention half of the square."""
    model = preset("llama2_7b")
    workload = Workload(
        model=model, mesh={"data": 2, "fsdp": 4, "tensor": 2}, rows=3, accumulation=5, seq_len=4096, remat=remat
    )
    tokens = 3 * 5 * 4096
    D, F, L, V = 4096, 11008, 32, 32000
    again = 2 if remat == "full" else 0
    by_hand = tokens * (L * ((6 + again) * (4 * D * D + 2 * D * F) + 6 * D * F) + 6 * D * V) / 2
    counted = sum(p.flops * p.count for p in work_of_step(workload) if p.kind == "matmul")
    assert counted == pytest.approx(by_hand, rel=1e-12)
    kernels = sum(p.flops * p.count for p in work_of_step(workload) if p.kind == "kernel")
    products = 2 + 7 + again  # forward, backward with two kernels, forward again
    assert kernels == pytest.approx(tokens * L * products * 2 * 4096 * D / 2 / 2)


def test_collectives_of_a_step():
    model = preset("llama2_70b")
    cluster = dataclasses.replace(CLUSTER, nodes=16)
    workload = Workload(
        model=model, mesh={"data": 2, "fsdp": 8, "tensor": 8}, rows=1, accumulation=2, seq_len=4096, remat="full"
    )
    found = {(each.kind, each.axes, each.dtype, each.count): each for each in
             collectives_of_step(workload, cluster=cluster)}  # fmt: skip
    layer = 8192 * (2 * 8192 + 2 * 1024 + 3 * 28672) / 8  # elements of a tensor shard
    gathered = found["all-gather", ("fsdp",), "bf16", 2 * 2 * 80 * 7]
    assert gathered.payload_bytes * 7 == pytest.approx(2 * layer, abs=7)
    assert (gathered.ranks_per_node, gathered.crosses_nodes) == (1, True)
    assert found["reduce-scatter", ("fsdp",), "bf16", 2 * 80].payload_bytes == 2 * layer
    assert found["all-reduce", ("data",), "bf16", 2 * 80].payload_bytes == 2 * layer / 8
    activations = found["reduce-scatter", ("tensor",), "bf16", 2 * 80 * 5]
    assert (activations.payload_bytes, activations.crosses_nodes) == (4096 * 8192 * 2, False)


@pytest.mark.parametrize("family", ["A100", "H100"])
def test_rows_that_were_not_fitted_are_predicted_within_the_printed_band(family):
    fitted, held_out = published.halves(family)
    assert not {run.name for run in fitted} & {run.name for run in held_out}
    assert len(held_out) > 20
    ratios = [run.predict() / run.seconds for run in held_out]
    assert 0.95 < statistics.median(ratios) < 1.05
    factor = 1 + EFFICIENCIES[family].error
    assert factor < 1.3
    assert sum(1 / factor <= ratio <= factor for ratio in ratios) >= 0.9 * len(ratios)


def test_weak_scaling_is_as_flat_as_published():
    predicted = [run.predict() for run in published.SCALING]
    seconds = [run.seconds for run in published.SCALING]
    assert predicted == pytest.approx(seconds, rel=EFFICIENCIES["H100"].error)
    assert predicted[-1] / predicted[0] == pytest.approx(seconds[-1] / seconds[0], abs=0.03)


def test_what_is_not_published_is_marked_as_scaled():
    for name, gpu in GPUS.items():
        share = Cluster(gpu=gpu, nodes=1, gpus_per_node=1).efficiency
        fitted = name in ("a100", "a100_40gb", "h100")
        assert share.fitted == fitted
        run, cluster = small_run(data=1, fsdp=1, tensor=1), Cluster(gpu=gpu, nodes=1, gpus_per_node=1)
        said = assumptions(RunPlan(run=run, cluster=cluster))[0]
        assert ("no published run of this GPU" in said) != fitted
        assert ("of the published runs that were fitted lie within" in said) == fitted
        assert share.error == pytest.approx(0.4) or fitted


def test_published_rate_and_time_agree():
    """Megatron-LM's 18.4B: 256 GPUs at 135 TFLOP/s; the paper's operations, written out for its shape."""
    T, L, D, V, B = 2048, 40, 6144, 51200, 1024
    operations = 96 * B * T * L * D * D + 16 * B * T * T * L * D + 6 * B * T * D * V
    (run,) = [run for run in published.RUNS if "18.4B" in run.name]
    assert run.seconds == pytest.approx(operations / (256 * 135e12))


def test_the_documented_table_is_the_codes():
    page = (Path(__file__).parents[2] / "docs" / "planning.md").read_text(encoding="utf-8")
    for family in ("A100", "H100"):
        for half in published.halves(family):
            assert published.table(half) in page
    assert published.scaling_table() in page
