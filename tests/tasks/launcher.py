"""Runs run.py as a user does, in processes of their own."""

import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from allam_jax.training.metrics import TIMING_KEYS

ROOT = Path(__file__).parents[2]
TINY = ROOT / "tests" / "tasks" / "tiny.py"


@dataclasses.dataclass(frozen=True)
class Finished:
    """A process that has ended."""

    status: int
    out: str
    err: str

    @property
    def result(self) -> dict[str, Any]:
        """The JSON object on the last line of stdout."""
        return json.loads(self.out.splitlines()[-1])


@dataclasses.dataclass(frozen=True)
class Launcher:
    """Starts run.py with what all tests share: the corpus, the tokenizer and a compilation cache."""

    root: Path  # holds corpus/en, corpus/ar, tokenizer
    cache: Path | None

    def start(
        self,
        workdir: Path | None,
        *,
        config: str = "",
        devices: int = 1,
        environment: Mapping[str, str] | None = None,
        before: tuple[str, ...] = (),
        **overrides: Any,
    ) -> subprocess.Popen:
        """`python run.py --config=... --workdir=... --config.KEY=VALUE`; stdout and stderr are pipes.

        `before` is a command to run it under. A flag, not a config key, begins with `flag_`.
        """
        command = [*before, sys.executable, str(ROOT / "run.py"), f"--config={config or f'{TINY}:{self.root}'}"]
        command += [f"--workdir={workdir}"] if workdir is not None else []
        for key, value in overrides.items():
            name = key.removeprefix("flag_") if key.startswith("flag_") else f"config.{key}"
            command.append(f"--{name}={value}")
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_", "XLA_"))}
        cache = {
            "JAX_COMPILATION_CACHE_DIR": str(self.cache),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        }
        return subprocess.Popen(
            command,
            cwd=ROOT,
            env=inherited
            | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
            | (cache if self.cache else {})
            | dict(environment or {}),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, workdir: Path | None, **options: Any) -> Finished:
        """`start`, and wait for the end."""
        return wait(self.start(workdir, **options))

    def train(self, workdir: Path, **options: Any) -> dict[str, Any]:
        """`run`, which must succeed; the JSON on the last line of stdout."""
        finished = self.run(workdir, **options)
        assert finished.status == 0, finished.err[-3000:]
        return finished.result


def wait(process: subprocess.Popen, *, timeout: float = 400) -> Finished:
    """What the process printed and how it ended."""
    try:
        out, err = process.communicate(timeout=timeout)
    finally:
        process.kill()
    return Finished(process.returncode, out, err)


def wait_until(condition: Callable[[], Any], *, process: subprocess.Popen, timeout: float = 300) -> None:
    """Looks every millisecond; fails if the process ends before."""
    end = time.monotonic() + timeout
    while not condition():
        if process.poll() is not None or time.monotonic() > end:
            pytest.fail(f"never came to it: {wait(process)}")
        time.sleep(0.001)


def read_rows(workdir: Path) -> list[dict[str, Any]]:
    """The complete lines of metrics.jsonl, without what depends on the clock."""
    path = workdir / "metrics.jsonl"
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    rows = [json.loads(line) for line in lines if line.endswith(b"\n")]
    return [{key: value for key, value in row.items() if key not in TIMING_KEYS} for row in rows]


def error_of(finished: Finished) -> str:
    """The one line of an error that the user can fix."""
    lines = finished.err.splitlines()
    assert finished.status == 2, finished.err[-3000:]
    assert finished.out == ""
    assert "Traceback" not in finished.err
    assert [line.startswith("error: ") for line in lines if "rror: " in line] == [True]
    assert lines[-1].startswith("error: ")
    return lines[-1].removeprefix("error: ")
