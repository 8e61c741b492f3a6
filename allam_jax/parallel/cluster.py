"""Reads from the environment which launcher started this process, and as which of how many. Touches no device.

JAX has a detection of its own, but its assumptions often do not hold: one process per GPU under Slurm (with one per
node it uses a single GPU and says nothing), all GPUs visible to every process, Open MPI before version 5. It is used
for the Kubernetes API only.
"""

import dataclasses
import glob
import os
import re
import zlib
from collections.abc import Mapping

from allam_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Launch:
    """What a launcher tells a process about its job."""

    source: str  # the launcher's name, for messages
    num_processes: int
    process_id: int  # from 0
    coordinator: str | None  # `host:port` of process 0, if the launcher says it
    local_rank: int | None = None  # which one this is among the processes of its host, if known
    local_size: int | None = None  # how many processes of the job run on this host, if known


def detect(environ: Mapping[str, str] = os.environ) -> Launch | None:
    """The launch that the environment describes; None if there is one process only.

    Looks for, in this order: JAX_NUM_PROCESSES with JAX_PROCESS_ID (Kubeflow Trainer; or with JOB_COMPLETION_INDEX, a
    Kubernetes Indexed Job), Open MPI, a Slurm step (srun), and the variables of torchrun. JAX_COORDINATOR_ADDRESS, or
    MASTER_ADDR with MASTER_PORT, names the coordinator under any of them.

    Raises:
        UserError: a variable of the launcher is missing or is not a number.
    """
    for launcher in (_jax_variables, _open_mpi, _slurm, _torchrun):
        launch = launcher(environ)
        if launch is not None:
            break
    else:
        return None
    if not 0 <= launch.process_id < launch.num_processes:
        raise UserError(
            f"{launch.source}: process id {launch.process_id} of {launch.num_processes} processes; "
            f"expected 0 to {launch.num_processes - 1}"
        )
    if launch.num_processes == 1:
        return None
    return dataclasses.replace(launch, coordinator=_named_coordinator(environ) or launch.coordinator)


def local_device_ids(launch: Launch, environ: Mapping[str, str] = os.environ) -> list[int] | None:
    """Indices of the visible GPUs that this process drives; None for all of them.

    Processes that share a host and see the same GPUs share them evenly. A process drives all GPUs that it sees if it is
    alone on its host, or if Slurm has bound GPUs to it.

    Raises:
        UserError: the GPUs of the host cannot be shared evenly.
    """
    rank, size = launch.local_rank, launch.local_size
    if "JAX_LOCAL_DEVICE_IDS" in environ or rank is None or size is None or size == 1:
        return None
    gpus = len(visible_gpus(environ))
    bound = "SLURM_GPUS_PER_TASK" in environ or "gpu" in environ.get("SLURM_TRES_PER_TASK", "")
    if gpus <= 1 or bound:
        return None
    if gpus % size:
        raise UserError(
            f"{launch.source}: {size} processes on this host for {gpus} visible GPUs; start one process per host, one "
            "per GPU, or set CUDA_VISIBLE_DEVICES or JAX_LOCAL_DEVICE_IDS for each"
        )
    share = gpus // size
    return list(range(rank * share, (rank + 1) * share))


def visible_gpus(environ: Mapping[str, str] = os.environ) -> list[str]:
    """The GPUs of this host that the process may use, as CUDA_VISIBLE_DEVICES names them."""
    if "CUDA_VISIBLE_DEVICES" in environ:
        return [entry.strip() for entry in environ["CUDA_VISIBLE_DEVICES"].split(",") if entry.strip()]
    return sorted((path.removeprefix("/dev/nvidia") for path in glob.glob("/dev/nvidia[0-9]*")), key=int)


def _jax_variables(environ: Mapping[str, str]) -> Launch | None:
    if "JAX_NUM_PROCESSES" not in environ:
        return None
    rank = "JAX_PROCESS_ID" if "JAX_PROCESS_ID" in environ else "JOB_COMPLETION_INDEX"
    return Launch(
        source="JAX_NUM_PROCESSES",
        num_processes=_number(environ, "JAX_NUM_PROCESSES"),
        process_id=_number(environ, rank),
        coordinator=None,
    )


def _open_mpi(environ: Mapping[str, str]) -> Launch | None:
    if "OMPI_COMM_WORLD_SIZE" not in environ:
        return None
    size = _number(environ, "OMPI_COMM_WORLD_SIZE")
    local_size = _number(environ, "OMPI_COMM_WORLD_LOCAL_SIZE")
    # Up to version 4 the address of mpirun is known, e.g. `1314521088.0;tcp://10.96.0.1,10.148.0.1:34911`.
    uri = environ.get("OMPI_MCA_orte_hnp_uri", "")
    launcher = re.search(r"tcp://([^,:]+)|tcp6://\[([^],]+)", uri)
    if local_size == size:
        host = "127.0.0.1"
    elif launcher is not None:
        host = launcher[1] or launcher[2]
    else:
        host = _first_host(environ.get("SLURM_JOB_NODELIST", ""))
    seed = environ.get("PMIX_NAMESPACE", uri)
    return Launch(
        source="Open MPI",
        num_processes=size,
        process_id=_number(environ, "OMPI_COMM_WORLD_RANK"),
        coordinator=_address(host, environ=environ, seed=seed),
        local_rank=_number(environ, "OMPI_COMM_WORLD_LOCAL_RANK"),
        local_size=local_size,
    )


def _slurm(environ: Mapping[str, str]) -> Launch | None:
    # Only `srun` sets the step's variables for every process. A batch script has SLURM_NTASKS too, but is one process.
    if "SLURM_STEP_NODELIST" not in environ or "SLURM_PROCID" not in environ:
        return None
    size = _number(environ, "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in environ else "SLURM_NTASKS")
    seed = f"{environ.get('SLURM_JOB_ID')}.{environ.get('SLURM_STEP_ID')}"
    per_node = _tasks_per_node(environ.get("SLURM_STEP_TASKS_PER_NODE", ""))
    node = int(environ.get("SLURM_NODEID", "0"))
    return Launch(
        source="Slurm",
        num_processes=size,
        process_id=_number(environ, "SLURM_PROCID"),
        coordinator=_address(_first_host(environ["SLURM_STEP_NODELIST"]), environ=environ, seed=seed),
        local_rank=_number(environ, "SLURM_LOCALID"),
        local_size=per_node[node] if node < len(per_node) else None,
    )


def _torchrun(environ: Mapping[str, str]) -> Launch | None:
    if not {"MASTER_ADDR", "WORLD_SIZE", "RANK"} <= environ.keys():
        return None
    return Launch(
        source="MASTER_ADDR, WORLD_SIZE, RANK",
        num_processes=_number(environ, "WORLD_SIZE"),
        process_id=_number(environ, "RANK"),
        coordinator=None,
        local_rank=_number(environ, "LOCAL_RANK") if "LOCAL_RANK" in environ else None,
        local_size=_number(environ, "LOCAL_WORLD_SIZE") if "LOCAL_WORLD_SIZE" in environ else None,
    )


def _named_coordinator(environ: Mapping[str, str]) -> str | None:
    if "JAX_COORDINATOR_ADDRESS" in environ:
        return environ["JAX_COORDINATOR_ADDRESS"]
    if "MASTER_ADDR" in environ:
        # Not MASTER_PORT itself: torchrun's own store listens there.
        return _address(environ["MASTER_ADDR"], environ=environ, seed=environ.get("MASTER_PORT", ""))
    return None


def _address(host: str, *, environ: Mapping[str, str], seed: str) -> str | None:
    """`host:port`. The port is a hash of `seed`, which names the job: all processes choose the same without talking.

    It lies above Linux's range for outgoing connections (32768 to 60999), so that it is rarely taken.
    """
    if not host:
        return None
    chosen = environ.get("JAX_COORDINATOR_PORT") or 61440 + zlib.crc32(seed.encode()) % 4096
    return f"[{host}]:{chosen}" if ":" in host else f"{host}:{chosen}"


def _first_host(node_list: str) -> str:
    """The first host of a Slurm list: `rack[2-3]node[07,09-12]-ib,login1` -> `rack2node07-ib`."""
    match = re.match(r"(?:[^,\[]|\[[^]]*\])*", node_list)
    return re.sub(r"\[([^],-]*)[^]]*\]", r"\1", match[0] if match else "")


def _tasks_per_node(text: str) -> list[int]:
    """Slurm's run-length list: `2(x3),1` -> [2, 2, 2, 1]."""
    tasks = []
    for count, repeat in re.findall(r"(\d+)(?:\(x(\d+)\))?", text):
        tasks += [int(count)] * int(repeat or 1)
    return tasks


def _number(environ: Mapping[str, str], variable: str) -> int:
    text = environ.get(variable)
    if text is None or not text.strip().isdigit():
        found = "is not set" if text is None else f"is {text!r}"
        raise UserError(f"environment variable {variable} {found}; expected a number, as its launcher sets it")
    return int(text)
