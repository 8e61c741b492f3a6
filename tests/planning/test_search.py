"""Layouts that are proposed really fit, keep the batch, and are the fastest by their own figures."""

import dataclasses
import math
import re

import pytest

from allam_jax.errors import UserError
from allam_jax.model.llama_config import preset
from allam_jax.parallel import mesh as mesh_module
from allam_jax.parallel.gpus import GPUS
from allam_jax.planning.fit import check_fits_cluster
from allam_jax.planning.gpu_cluster import Cluster, cluster_of
from allam_jax.planning.memory import estimated_memory
from allam_jax.planning.run_plan import RunPlan
from allam_jax.planning.search import changes, does_not_fit, meshes, ranked
from allam_jax.planning.workload import workload_of
from allam_jax.tasks.registry import settings_of
from allam_jax.training.run_description import described_run
from configs import base
from tests.planning.small_runs import small_config


def big(*, nodes: int, batch: int, **mesh: int):
    config = base.get_config("plan")
    config.model = base.model(preset("llama2_13b"))
    config.compute.update(compute_dtype="bfloat16", remat="dots", attention="xla_chunked")
    config.mesh.update(**mesh)
    config.data.update(seq_len=4096, batch_size=batch)
    config.train.loss_chunks = 8
    config.plan.update(gpu="a100", nodes=nodes)
    settings = settings_of(config)
    cluster = cluster_of(settings.plan)
    return described_run(settings, device_count=cluster.size), cluster


def test_meshes_use_every_gpu_and_keep_tensor_inside_a_node():
    cluster = Cluster(gpu=GPUS["a100"], nodes=3, gpus_per_node=8)
    found = list(meshes(cluster, mesh={"data": 24, "fsdp": 1, "tensor": 1}))
    assert len({tuple(mesh.values()) for mesh in found}) == len(found)
    assert all(math.prod(mesh.values()) == 24 and 8 % mesh["tensor"] == 0 for mesh in found)
    by_hand = sum(1 for t in (1, 2, 4, 8) for f in range(1, 25) if (24 // t) % f == 0)
    assert len(found) == by_hand


def test_only_what_fits_and_the_fastest_first():
    run, cluster = big(nodes=2, batch=64, data=1, fsdp=16, tensor=1)
    plans = ranked(run, cluster=cluster)
    assert plans
    times = [plan.time.total for plan in plans]
    assert times == sorted(times)
    for plan in plans:
        assert estimated_memory(plan.run, cluster=cluster).total <= cluster.usable_bytes
        workload = workload_of(plan.run)
        assert workload.tokens_per_step == 64 * 4096
    # 13B on one GPU alone is 208 GB of state: replicas everywhere cannot be among them.
    assert not [plan for plan in plans if plan.run.mesh["fsdp"] * plan.run.mesh["tensor"] == 1]


def test_more_memory_never_makes_it_slower():
    run, cluster = big(nodes=2, batch=64, data=1, fsdp=16, tensor=1)
    larger = dataclasses.replace(cluster, gpu=dataclasses.replace(cluster.gpu, memory_bytes=2**38))
    small, large = (ranked(run, cluster=each) for each in (cluster, larger))
    assert {plan.run.describe() for plan in small} < {plan.run.describe() for plan in large}
    assert large[0].time.total <= small[0].time.total


def test_nearest_changes_least():
    run, cluster = big(nodes=2, batch=64, data=1, fsdp=16, tensor=1)
    plan = RunPlan(run=run, cluster=cluster)
    assert not plan.memory.fits
    plans = ranked(run, cluster=cluster)
    one_change = [each for each in plans if len(changes(run, each.run)) == 1]
    fastest = min(one_change, key=lambda each: each.time.total)
    message = str(does_not_fit(plan, plans=plans))
    assert "\n" not in message
    needed, available = (float(size) for size in re.findall(r"needs ([\d.]+) of ([\d.]+) GiB", message)[0])
    assert "by formula" in message
    assert needed > available == pytest.approx(85.1e9 * 0.92 / 2**30, abs=0.06)
    assert f"--config.{changes(run, fastest.run)[0]} ({fastest.memory.total / 2**30:.1f} GiB" in message


def test_before_a_run_only_what_is_clearly_too_large_is_refused():
    run, cluster = big(nodes=2, batch=64, data=1, fsdp=16, tensor=1)
    needed = RunPlan(run=run, cluster=cluster).memory.total

    def with_memory(size: float) -> Cluster:
        gpu = dataclasses.replace(cluster.gpu, memory_bytes=round(size))
        return dataclasses.replace(cluster, gpu=gpu, usable_share=1.0)

    check_fits_cluster(run, cluster=with_memory(1.01 * needed))
    check_fits_cluster(run, cluster=with_memory(0.9 * needed))
    with pytest.raises(UserError, match="does not fit: .* needs .* the nearest that fits: --config"):
        check_fits_cluster(run, cluster=with_memory(0.8 * needed))


def test_one_more_axis_of_size_one_changes_no_figure(monkeypatch):
    def figures():
        run, cluster = big(nodes=2, batch=64, data=1, fsdp=8, tensor=2)
        plan = RunPlan(run=run, cluster=cluster)
        layouts = ranked(run, cluster=cluster)
        return run.mesh, [(each.memory, each.work, each.collectives, each.time) for each in (plan, *layouts)]

    three, expected = figures()
    monkeypatch.setattr(mesh_module, "MESH_AXES", ("data", "fsdp", "sequence", "tensor"))
    four, found = figures()
    assert (len(three), list(four)) == (3, ["data", "fsdp", "sequence", "tensor"])
    assert found == expected
    assert len(expected) > 10


def test_the_search_keeps_the_sizes_of_other_axes():
    cluster = Cluster(gpu=GPUS["a100"], nodes=3, gpus_per_node=8)
    found = list(meshes(cluster, mesh={"data": 1, "fsdp": 4, "sequence": 3, "tensor": 2}))
    assert all(tuple(mesh) == ("data", "fsdp", "sequence", "tensor") and mesh["sequence"] == 3 for mesh in found)
    assert all(math.prod(mesh.values()) == 24 for mesh in found)
    assert len(found) == sum(1 for t in (1, 2, 4, 8) for f in range(1, 9) if (8 // t) % f == 0)


def test_nothing_fits():
    run, cluster = big(nodes=1, batch=8, data=1, fsdp=8, tensor=1)
    tiny = dataclasses.replace(cluster, gpu=dataclasses.replace(cluster.gpu, memory_bytes=2**34))
    plan = RunPlan(run=run, cluster=tiny)
    assert ranked(run, cluster=tiny) == []
    assert "no mesh, remat policy or accumulation" in str(does_not_fit(plan, plans=[]))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("gpu", "v100", "config.plan.gpu = 'v100': expected one of 'a100', 'a100_40gb', 'h100'"),
        ("nodes", 0, "config.plan.nodes = 0: expected a whole number, at least 1"),
        ("usable_share", 1.5, "config.plan.usable_share = 1.5: expected a number, above 0, at most 1"),
        ("network_gb_s", -1.0, "config.plan.network_gb_s = -1.0: expected a number, at least 0"),
    ],
)
def test_bad_clusters(key, value, message):
    config = small_config(data=8)
    config.plan[key] = value
    with pytest.raises(UserError, match=re.escape(message)):
        settings_of(config)


def test_links_and_memory_can_be_given():
    config = small_config(data=8)
    config.plan.update(memory_gib=40.0, nvlink_gb_s=100.0, network_gb_s=12.5)
    gpu = cluster_of(settings_of(config).plan).gpu
    assert (gpu.memory_bytes, gpu.nvlink_bandwidth, gpu.network_bandwidth) == (40 * 2**30, 100e9, 12.5e9)
