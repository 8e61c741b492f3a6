"""Many processes as one: they start together, each builds its rows of a batch, and they exchange small values."""

import atexit
import dataclasses
import importlib.util
import json
import os
import socket
import sys
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from allam_jax import interrupts, watchdog
from allam_jax.errors import UserError
from allam_jax.parallel import lifeline
from allam_jax.parallel.cluster import Launch, detect, local_device_ids
from allam_jax.parallel.mesh import batch_sharding
from allam_jax.parallel.rendezvous import meet

_SHUTDOWN_SECONDS = 300.0  # in which the others end too; JAX waits as long for them


def initialize(
    *,
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    timeout_seconds: float = 300.0,
    facts: Callable[[], Mapping[str, Any]] = dict,
) -> None:
    """Joins this process to its job. Call it before anything touches a device. With one process it does nothing.

    Arguments that are not given are read from the launcher's environment variables (see `cluster.detect`).

    Args:
        coordinator: `host:port` of process 0.
        num_processes: how many processes the job has.
        process_id: which one this is, from 0.
        timeout_seconds: how long to wait for the other processes.
        facts: gives what must be the same on all processes, name -> JSON-able value; called if there are several.

    Raises:
        UserError: the description of the job is incomplete, the processes do not find each other or differ in a fact,
            or JAX finds no device.
    """
    launch = _resolve(coordinator=coordinator, num_processes=num_processes, process_id=process_id)
    if launch is None:
        if num_processes is None and _is_kubernetes_job_of_unknown_size(os.environ):
            _initialize_from_kubernetes(timeout_seconds=timeout_seconds, facts=facts)
        _check_devices()
        return
    assert launch.coordinator is not None
    _hold(
        meet(
            coordinator=launch.coordinator,
            num_processes=launch.num_processes,
            process_id=launch.process_id,
            timeout_seconds=timeout_seconds,
            facts=facts(),
            source=launch.source,
        )
    )
    _configure()
    jax.distributed.initialize(
        coordinator_address=launch.coordinator,
        num_processes=launch.num_processes,
        process_id=launch.process_id,
        local_device_ids=local_device_ids(launch),
        cluster_detection_method="deactivate",
        initialization_timeout=int(timeout_seconds),
    )
    _check_devices()


def _configure() -> None:
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # The lifeline agrees on stops and ends the job when a process dies; JAX's own ways are deaf for a minute or abort.
    jax.config.update("jax_enable_preemption_service", False)
    jax.config.update("jax_enable_recoverability", True)


def _hold(line: lifeline.Lifeline) -> None:
    lifeline.join(line)
    interrupts.on_leaving(line.end)
    atexit.register(_end_of_interpreter)  # after JAX's own, which was registered when it was imported: runs before it


def _end_of_interpreter() -> None:
    """Keeps process 0, which serves the others, until they have left; JAX's shutdown aborts a process that comes later.

    Only a program that ends by itself comes here; `run.py` leaves with `os._exit`.
    """
    line = lifeline.current()
    assert line is not None
    error = getattr(sys, "last_value", None)  # what has ended the program, already printed
    if error is not None:
        line.end(f"{type(error).__name__}: {error}", 1)
        os._exit(1)
    line.finish(timeout_seconds=_SHUTDOWN_SECONDS)


def _check_devices() -> None:
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:
        asked = os.environ.get("JAX_PLATFORMS", "")
        reason = " ".join(str(error).split())[:300] or "no device of that kind was found"
        where = f"JAX_PLATFORMS={asked}" if asked else "JAX"
        raise UserError(
            f"{where}: no device can be used ({reason}); install the matching jax package and driver, or set "
            "JAX_PLATFORMS=cpu"
        ) from error


def _resolve(*, coordinator: str | None, num_processes: int | None, process_id: int | None) -> Launch | None:
    """The job that flags describe, or else the environment with the given flags over it; None for a single process."""
    given = {"coordinator": coordinator or None, "num_processes": num_processes, "process_id": process_id}
    given = {name: value for name, value in given.items() if value is not None}
    if num_processes is not None and process_id is not None:
        if not 0 <= process_id < num_processes:
            raise UserError(f"--process_id={process_id}: expected 0 to {num_processes - 1} (--num_processes)")
        launch = Launch("--num_processes", num_processes=num_processes, process_id=process_id, coordinator=coordinator)
        if num_processes == 1:
            return None
    else:
        found = detect()
        if found is None:
            if given:
                needed = ("coordinator", "num_processes", "process_id")
                missing = ", ".join(f"--{flag}" for flag in needed if flag not in given)
                raise UserError(f"{missing} missing: a job of many processes needs all of --{', --'.join(needed)}")
            return None
        launch = dataclasses.replace(found, **given)  # type: ignore[arg-type]
    if launch.coordinator is None:
        raise UserError(
            f"{launch.num_processes} processes ({launch.source}), but no address of process 0; "
            "give --coordinator=host:port or set JAX_COORDINATOR_ADDRESS"
        )
    return launch


def _is_kubernetes_job_of_unknown_size(environ: Mapping[str, str]) -> bool:
    indexed_job = {"KUBERNETES_SERVICE_HOST", "JOB_COMPLETION_INDEX"} <= environ.keys()
    return indexed_job and "JAX_NUM_PROCESSES" not in environ


def _initialize_from_kubernetes(*, timeout_seconds: float, facts: Callable[[], Mapping[str, Any]]) -> None:
    """Lets JAX ask the Kubernetes API for the size of an Indexed Job, which its variables do not give."""
    if importlib.util.find_spec("kubernetes") is None:
        raise UserError(
            "Kubernetes Indexed Job: set JAX_NUM_PROCESSES and JAX_COORDINATOR_ADDRESS in the pod's template "
            "(JAX_NUM_PROCESSES=1 for a job of one), or install the package kubernetes so that JAX can ask the cluster"
        )
    _configure()
    try:
        jax.distributed.initialize()
    except (RuntimeError, ValueError) as error:
        raise UserError(f"Kubernetes: {' '.join(str(error).split())}") from None
    if jax.process_count() > 1:
        with socket.create_server(("", 0)) as probe:
            port = probe.getsockname()[1]
        _hold(
            meet(
                coordinator=broadcast(f"{socket.gethostbyname(socket.gethostname())}:{port}"),
                num_processes=jax.process_count(),
                process_id=jax.process_index(),
                timeout_seconds=timeout_seconds,
                facts=facts(),
            )
        )


def places() -> list[watchdog.Place | None]:
    """Where the processes of the job are, as far as this one knows (`Lifeline.places`); [] for a single process."""
    line = lifeline.current()
    return line.places() if line else []


def leave(reason: str, status: int) -> None:
    """Tells the other processes of the job, if there are any, that this one ends now; then call `os._exit`."""
    if line := lifeline.current():
        line.end(reason, status)


def is_main_process() -> bool:
    """Whether this is process 0, which prints and writes the files that are written once."""
    return jax.process_index() == 0


def process_rows(mesh: Mesh, *, global_batch: int) -> tuple[int, int]:
    """The rows `[start, stop)` of the global batch that this process must build.

    Processes whose devices hold the same batch shards need the same rows, and each of them builds all of these.

    Raises:
        UserError: the mesh gives this process rows that do not lie together.
    """
    indices = batch_sharding(mesh).addressable_devices_indices_map((global_batch,))
    pieces = sorted({index[0].indices(global_batch)[:2] for index in indices.values() if index is not None})
    for (_, stop), (start, _) in zip(pieces, pieces[1:], strict=False):
        if stop != start:
            raise UserError(
                f"the mesh {dict(mesh.shape)} gives process {jax.process_index()} rows that do not lie together "
                f"({pieces}); choose mesh sizes with which each host holds neighbouring batch shards"
            )
    return pieces[0][0], pieces[-1][1]


def global_batch_array(local_batch: Mapping[str, np.ndarray], *, mesh: Mesh, global_batch: int) -> dict[str, jax.Array]:
    """Joins the rows of all processes to global arrays `[global_batch, ...]` with `batch_sharding`.

    `local_batch` holds the rows of this process only (`process_rows`), in order.
    """
    sharding = batch_sharding(mesh)
    return {
        name: jax.make_array_from_process_local_data(sharding, rows, (global_batch, *rows.shape[1:]))
        for name, rows in local_batch.items()
    }


def barrier(name: str) -> None:
    """Waits until every process has come to the barrier of this name."""
    watchdog.note("wait for others")
    multihost_utils.sync_global_devices(name)


def gather(value: Any) -> list[Any]:
    """Every process's `value` (anything JSON can hold), in the order of processes, on all of them."""
    if jax.process_count() == 1:
        return [value]
    own = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.array(own.size))
    padded = np.zeros(sizes.max(), np.uint8)
    padded[: own.size] = own
    rows = multihost_utils.process_allgather(padded)
    return [json.loads(row[:size].tobytes()) for row, size in zip(rows, sizes, strict=True)]


def broadcast(value: Any) -> Any:
    """Process 0's `value` (anything JSON can hold) on every process."""
    return gather(value if is_main_process() else None)[0]
