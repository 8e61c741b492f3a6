"""run.py --sweep as a user starts it, and what it left."""

import dataclasses
import json
from pathlib import Path

import psutil
from forked import Forked
from processes import ROOT, child_environment, wait

EXPERIMENT = ROOT / "tests" / "launch" / "small_experiment.py"


@dataclasses.dataclass(frozen=True)
class Sweeper:
    """Starts run.py --sweep on small_experiment.py, with the recipe of tests/tasks/tiny_recipe.py."""

    texts: Path
    cache: Path

    def environment(self, **variables):
        """What a user would have set, with a compilation cache."""
        return child_environment(cache=self.cache, **variables)

    def start(self, workdir, *flags, arg="", **variables):
        """A process; `variables` of the environment."""
        command = [ROOT / "run.py", f"--config={ROOT}/tests/tasks/tiny_recipe.py:{self.texts}"]
        command += [f"--sweep={EXPERIMENT}{arg and ':'}{arg}", f"--workdir={workdir}", *flags]
        return Forked(command, environment=self.environment(**variables))

    def run(self, workdir, *flags, status=0, **options):
        """stdout, stderr; must end with `status`."""
        finished = wait(self.start(workdir, *flags, **options), timeout=550)
        assert finished.status == status, finished.err[-3000:]
        return finished.out, finished.err


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
