"""run.py --sweep as a user starts it, and what it left."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[2]


@dataclasses.dataclass(frozen=True)
class Sweeper:
    """Starts run.py --sweep on tests/launch/small_experiment.py, with the recipe of tests/tasks/tiny_recipe.py."""

    texts: Path
    cache: Path

    def start(self, workdir, *flags, arg="", environment=None):
        """A process with pipes."""
        command = [sys.executable, str(ROOT / "run.py"), f"--config={ROOT}/tests/tasks/tiny_recipe.py:{self.texts}"]
        command += [f"--sweep={ROOT}/tests/launch/small_experiment.py{arg and ':'}{arg}", f"--workdir={workdir}"]
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_", "XLA_"))}
        shared = {
            "JAX_PLATFORMS": "cpu",
            "JAX_COMPILATION_CACHE_DIR": str(self.cache),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        }
        return subprocess.Popen(
            [*command, *flags],
            cwd=ROOT,
            env=inherited | shared | (environment or {}),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, workdir, *flags, status=0, **options):
        """stdout, stderr; must end with `status`."""
        process = self.start(workdir, *flags, **options)
        out, err = process.communicate(timeout=550)
        assert process.returncode == status, err[-3000:]
        return out, err


def metrics_of(directory):
    """Rows of a metrics.jsonl without what depends on the clock, read without any code of ours."""
    rows = [json.loads(line) for line in (Path(directory) / "metrics.jsonl").read_text().splitlines()]
    clock = ("seconds", "tokens_per_second", "eta", "mfu")
    return [{key: value for key, value in row.items() if key not in clock} for row in rows]


def kill_tree(process):
    """Kills a process and all that it has started, as when the machine goes down."""
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    for member in family:
        member.kill()
    psutil.wait_procs(family, timeout=30)
    process.communicate()
