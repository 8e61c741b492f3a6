"""Checks before a run starts whether its step fits into the memory of the devices at hand."""

import dataclasses

import jax
from absl import logging
from jax.sharding import Mesh

from allam_jax.parallel.gpus import GPUS, known_gpu
from allam_jax.parallel.host_memory import check_memory
from allam_jax.planning.gpu_cluster import Cluster
from allam_jax.planning.run_plan import RunPlan
from allam_jax.planning.search import does_not_fit, gib, ranked
from allam_jax.training.run_description import RunDescription

TOLERANCE = 1.15  # the formulas are off by a few percent; a run is refused only beyond this


def check_fits(run: RunDescription, *, mesh: Mesh) -> None:
    """Raises UserError, with the nearest layout that fits, if the step needs clearly more memory than a device has.

    A step that is close to the limit gives a warning. On CPUs the state alone is compared with the machine's memory.
    """
    remedy = "choose a smaller model, or see with --config.task=plan what it needs on GPUs"
    check_memory(run.abstract_state(mesh), what="the parameters and the optimizer's state", remedy=remedy)
    device = mesh.local_devices[0]
    stats = device.memory_stats()
    if device.platform != "gpu" or not stats or not stats.get("bytes_limit"):
        return
    nodes = len({each.process_index for each in mesh.devices.flat})
    check_fits_cluster(
        run, cluster=cluster_like(device, limit=stats["bytes_limit"], nodes=nodes, gpus_per_node=mesh.size // nodes)
    )


def cluster_like(device: jax.Device, *, limit: int, nodes: int, gpus_per_node: int) -> Cluster:
    """A cluster of such devices with `limit` usable bytes each. An unknown GPU has the rates of an A100."""
    known = known_gpu(device.device_kind) or GPUS["a100"]
    gpu = dataclasses.replace(known, name=device.device_kind, memory_bytes=limit)
    return Cluster(gpu=gpu, nodes=nodes, gpus_per_node=gpus_per_node, usable_share=1.0)


def check_fits_cluster(run: RunDescription, *, cluster: Cluster) -> None:
    """Does the same as `check_fits` for a described cluster."""
    plan = RunPlan(run=run, cluster=cluster)
    if plan.memory.fits:
        return
    if plan.memory.total > TOLERANCE * plan.memory.usable:
        raise does_not_fit(plan, plans=ranked(run, cluster=cluster))
    logging.warning(
        "the step may not fit: by formula it needs %s of the %s that a device has",
        gib(plan.memory.total),
        gib(plan.memory.usable),
    )
