"""Runs a piece of code in several processes at once, as a launcher would."""

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

LAUNCHER_VARIABLES = ("SLURM_", "OMPI_", "PMIX_", "JAX_", "MASTER_", "KUBERNETES_", "JOB_COMPLETION", "CUDA_VISIBLE")


@pytest.fixture
def port() -> int:
    """A port that nobody listens on right now."""
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]


def clean_environment(*, devices: int = 1, **variables: str) -> dict[str, str]:
    """Our environment without any launcher's variables, plus these; `devices` virtual CPU devices."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(LAUNCHER_VARIABLES)}
    return inherited | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "PYTHONPATH": str(ROOT),
        **variables,
    }


@pytest.fixture
def environment():
    """`clean_environment`, as a fixture so that tests need not import this file."""
    return clean_environment


@pytest.fixture
def run_together():
    """Starts Python with each list of arguments at once; gives a list of (exit status, stdout, stderr)."""

    def run(commands: list[list[str]], *, environments: list[Mapping[str, str]], timeout: float = 120):
        processes = [
            subprocess.Popen(
                [sys.executable, *command],
                env=environment,
                cwd=ROOT,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for command, environment in zip(commands, environments, strict=True)
        ]
        try:
            outputs = [process.communicate(timeout=timeout) for process in processes]
        finally:
            for process in processes:
                process.kill()
        return [(process.returncode, *output) for process, output in zip(processes, outputs, strict=True)]

    return run
