"""Before a run starts: does it fit the devices that are here?"""

import dataclasses

import jax
from absl import logging
from jax.sharding import Mesh

from allam_jax.parallel.gpus import GPUS, known_gpu
from allam_jax.planning.gpu_cluster import Cluster
from allam_jax.planning.run_plan import Energy, analytic_plan
from allam_jax.planning.search import does_not_fit, gib, ranked
from allam_jax.training.run_description import RunDescription

TOLERANCE = 1.15  # the formulas are right to a few percent; only what is clearly too large is refused


def check_fits(run: RunDescription, *, mesh: Mesh) -> None:
    """UserError, naming the nearest layout that fits, if the step clearly needs more memory than a device has.

    A step that may just not fit is only warned of. Where the memory of a device is not known (on CPU) nothing is done.
    """
    device = mesh.local_devices[0]
    stats = device.memory_stats()
    if device.platform != "gpu" or not stats or not stats.get("bytes_limit"):
        return
    nodes = len({each.process_index for each in mesh.devices.flat})
    check_fits_cluster(
        run, cluster=cluster_like(device, limit=stats["bytes_limit"], nodes=nodes, gpus_per_node=mesh.size // nodes)
    )


def cluster_like(device: jax.Device, *, limit: int, nodes: int, gpus_per_node: int) -> Cluster:
    """A cluster of such devices with `limit` bytes to use on each; of a GPU that is not known, the rates of an A100."""
    known = known_gpu(device.device_kind) or GPUS["a100"]
    gpu = dataclasses.replace(known, name=device.device_kind, memory_bytes=limit)
    return Cluster(gpu=gpu, nodes=nodes, gpus_per_node=gpus_per_node, usable_share=1.0)


def check_fits_cluster(run: RunDescription, *, cluster: Cluster) -> None:
    """As `check_fits`, for a cluster whose usable memory is given."""
    energy = Energy(power_share=1.0, pue=1.0)
    plan = analytic_plan(run, cluster=cluster, tokens=0, energy=energy)
    if plan.memory.fits:
        return
    if plan.memory.total > TOLERANCE * plan.memory.usable:
        raise does_not_fit(run, plan, plans=ranked(run, cluster=cluster, tokens=0, energy=energy))
    logging.warning(
        "this may not fit: by formula a step needs %s of the %s that a device has",
        gib(plan.memory.total),
        gib(plan.memory.usable),
    )
