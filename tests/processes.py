"""Processes that tests start: their environment, waiting for them, and what is made once for all workers of xdist."""

import contextlib
import dataclasses
import fcntl
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from forked import Forked

ROOT = Path(__file__).parents[1]
_FLAGS = "ALLAM_JAX_TESTS_XLA_FLAGS"  # a variable; set it to nothing, and programs are compiled as users have them
# Most programs of the tests run once. LLVM's optimiser and XLA's newer way to write loops (which jaxlib 0.12 cannot
# switch off) would take half of the time of all tests. `.ci/long`, and Python 3.12 in `.ci/run`, do without these.
_QUICK = (
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
    "--xla_cpu_parallel_codegen_split_count=1",
    "--xla_cpu_use_fusion_emitters=false",
)


def _known(flag: str) -> bool:
    """Whether this jaxlib has the flag; it ends a process that gives another one."""
    program = "from jaxlib import xla_client; xla_client.make_cpu_client()"
    tried = subprocess.run([sys.executable, "-c", program], env=os.environ | {"XLA_FLAGS": flag}, capture_output=True)
    return tried.returncode == 0


if _FLAGS not in os.environ:  # asked once: children inherit it
    os.environ[_FLAGS] = " ".join(flag for flag in _QUICK if flag != _QUICK[-1] or _known(flag))
UNOPTIMISED = os.environ[_FLAGS]
# A compilation cache keeps even the smallest program.
CACHE_EVERYTHING = {
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
}
# What a launcher or a user may have set for their own runs, and a child must not see.
_FOREIGN = ("SLURM_", "OMPI_", "PMIX_", "JAX_", "XLA_", "MASTER_", "KUBERNETES_", "JOB_COMPLETION", "CUDA_VISIBLE")


def child_environment(*, devices: int = 1, cache: Path | None = None, **variables: str) -> dict[str, str]:
    """Our environment without any launcher's variables, plus `variables`.

    Args:
        devices: number of virtual CPU devices.
        cache: a compilation cache, which keeps even the smallest program.
        variables: set last.
    """
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(_FOREIGN)}
    own = {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices} {UNOPTIMISED}",
        "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}",  # children may import what tests share
    }
    shared = CACHE_EVERYTHING | {"JAX_COMPILATION_CACHE_DIR": str(cache)}
    return inherited | own | (shared if cache else {}) | variables


@dataclasses.dataclass(frozen=True)
class Finished:
    """A process that has ended."""

    status: int
    out: str
    err: str

    @property
    def result(self) -> dict[str, Any]:
        """The JSON object on the last line of stdout."""
        return json.loads(self.out.strip().splitlines()[-1])


# Before a command: what hears hang-ups, also where the tests run under nohup.
HEARS_HANG_UPS = ("env", "--default-signal=HUP")


def start(command: Sequence[Any], *, environment: Mapping[str, str]) -> subprocess.Popen:
    """Starts a command in the repository; its streams are pipes."""
    pipe = subprocess.PIPE
    return subprocess.Popen(
        list(map(str, command)), cwd=ROOT, env=dict(environment), stdin=pipe, stdout=pipe, stderr=pipe, text=True
    )


def wait(process: subprocess.Popen | Forked, *, timeout: float = 400) -> Finished:
    """What the process printed and how it ended."""
    try:
        out, err = process.communicate(timeout=timeout)
    finally:
        process.kill()
    return Finished(process.returncode, out, err)


def wait_until(condition: Callable[[], Any], *, process: subprocess.Popen | Forked, timeout: float = 300) -> None:
    """Looks every millisecond; fails if the process ends before."""
    end = time.monotonic() + timeout
    while not condition():
        if process.poll() is not None or time.monotonic() > end:
            pytest.fail(f"never came to it: {wait(process)}")
        time.sleep(0.001)


def free_port() -> int:
    """A port that nobody listens on right now."""
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]


def run_together(
    commands: Sequence[Sequence[Any]], *, environments: Sequence[Mapping[str, str]], timeout: float = 300
) -> list[Finished]:
    """Starts Python with each list of arguments at once, as a launcher would, and waits for all."""
    processes = [
        Forked(command, environment=environment) for command, environment in zip(commands, environments, strict=True)
    ]
    try:
        return [wait(process, timeout=timeout) for process in processes]
    finally:
        for process in processes:
            process.kill()


@contextlib.contextmanager
def made_once(tmp_path_factory: pytest.TempPathFactory, name: str) -> Iterator[tuple[Path, bool]]:
    """A folder that all workers of xdist share: (folder, whether it still has to be filled). Others wait meanwhile."""
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent
    folder, complete = root / name, root / f"{name}.complete"
    with open(root / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        folder.mkdir(exist_ok=True)
        yield folder, not complete.exists()
        complete.touch()
