"""Runs run.py as a user does, in processes of their own (`forked.py`)."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from forked import Forked
from processes import ROOT, Finished, child_environment, wait

from allam_jax.training.metrics import TIMING_KEYS

TINY = ROOT / "tests" / "tasks" / "tiny.py"


def run_command(workdir: Path | None, *, config: str, **overrides: Any) -> list[str]:
    """`run.py --config=... --workdir=... --config.KEY=VALUE`. A flag, not a config key, begins with `flag_`."""
    command = [str(ROOT / "run.py"), f"--config={config}"]
    command += [f"--workdir={workdir}"] if workdir is not None else []
    for key, value in overrides.items():
        name = key.removeprefix("flag_") if key.startswith("flag_") else f"config.{key}"
        command.append(f"--{name}={value}")
    return command


@dataclasses.dataclass(frozen=True)
class Launcher:
    """Starts run.py with what all tests share: the corpus, the tokenizer and a compilation cache."""

    root: Path  # holds corpus/en, corpus/ar, tokenizer
    cache: Path

    def start(
        self,
        workdir: Path,
        *,
        config: str | None = None,
        devices: int = 1,
        environment: Mapping[str, str] | None = None,
        **overrides: Any,
    ) -> Forked:
        """See `run_command`; the config is tiny.py's where none is given."""
        command = run_command(workdir, config=f"{TINY}:{self.root}" if config is None else config, **overrides)
        variables = child_environment(devices=devices, cache=self.cache, **environment or {})
        return Forked(command, environment=variables)

    def run(self, workdir: Path, **options: Any) -> Finished:
        """`start`, and wait for the end."""
        return wait(self.start(workdir, **options))

    def train(self, workdir: Path, **options: Any) -> dict[str, Any]:
        """`run`, which must succeed; the JSON on the last line of stdout."""
        finished = self.run(workdir, **options)
        assert finished.status == 0, finished.err[-3000:]
        return finished.result


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
