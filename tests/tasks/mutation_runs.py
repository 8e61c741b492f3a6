"""Runs many configs of mutated.py, forked out of a warm process, and says what each fault was:

PYTHONPATH=tests:tests/tasks:. python tests/tasks/mutation_runs.py --root DIR --out DIR --count 3000 [--flags]

With --flags each run is a process of its own and gets the new values by flags.
"""

import argparse
import concurrent.futures
import itertools
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from forked import Forked
from launcher import Launcher, run_command
from processes import Finished, child_environment, start, wait

from allam_jax.tasks.registry import TASKS
from tests.tasks.mutated import config_of, mutations

MUTATED, ALL_TASKS = (Path(__file__).with_name(name) for name in ("mutated.py", "all_tasks.py"))


def fault_of(status: int, out: str, err: str, workdir: Path) -> str:
    """What was wrong with a run; empty if nothing was."""
    last = err.strip().splitlines()[-1:] or [""]
    if "Traceback" in err or "Exception ignored" in err:
        return f"traceback: {last[0][:300]}"
    if left := [path.name for path in workdir.rglob("*") if path.name.endswith((".tmp", ".old", "-tmp"))]:
        return f"left behind: {left}"
    if status == 2:
        return "" if last[0].startswith("error: ") and not out.strip() else f"no one-line error: {last[0][:300]}"
    if status != 0:
        return f"status {status}: {last[0][:300]}"
    try:
        _read_strictly(out.strip().splitlines()[-1])
        for path in workdir.rglob("*"):
            if path.suffix in (".json", ".jsonl"):
                text = path.read_text(encoding="utf-8")
                for part in text.splitlines() if path.suffix == ".jsonl" else [text]:
                    _read_strictly(part)
    except (ValueError, IndexError) as error:
        return f"result is not JSON of finite numbers: {error}"
    return ""


def _read_strictly(text: str) -> Any:
    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} in JSON")

    return json.loads(text, parse_constant=refuse)


def prepare(launcher: Launcher) -> None:
    """Adds to the folder of a launcher what tasks read that other tasks have written."""
    launcher.train(launcher.root / "stages", config=f"{ALL_TASKS}:{launcher.root}")


def run_all(
    jobs: list[tuple[str, Any]], *, root: Path, folder: Path, environment: Mapping[str, str]
) -> Iterator[tuple]:
    """Runs mutation SEED of TASK for each job in forks of a warm process; yields (task, seed, fault, status)."""
    for task, seed in jobs:
        place = folder / f"{task}-{seed}"
        place.mkdir(parents=True)
        command = ["run.py", f"--config={MUTATED}:{root},{task},{seed}", f"--workdir={place / 'workdir'}"]
        try:
            done = wait(Forked(command, environment=environment), timeout=120)
        except subprocess.TimeoutExpired:
            done = Finished(-1, "", "hangs")
        yield task, seed, fault_of(done.status, done.out, done.err, place / "workdir"), done.status


def run_by_flags(
    jobs: list[tuple[str, int]], *, root: Path, folder: Path, environment: Mapping[str, str]
) -> Iterator[tuple]:
    """`run_all` in a process for each job, with the new values on the command line, as far as one can hold them."""
    for task, seed in jobs:
        values = mutations(config_of(task, str(root)), task=task, seed=str(seed))
        overrides = {".".join(path): value for path, value in values if "\0" not in str(value)}
        workdir = folder / f"{task}-{seed}" / "workdir"
        command = [sys.executable, *run_command(workdir, config=f"{MUTATED}:{root},{task},none", **overrides)]
        done = wait(start(command, environment=environment), timeout=120)
        yield task, seed, fault_of(done.status, done.out, done.err, workdir), done.status


def main() -> None:
    """See the module."""
    from tests.tasks.conftest import fill  # here, because pytest knows several modules of the name conftest

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--count", type=int, default=3000)
    parser.add_argument("--first", type=int, default=0)
    tasks = sorted(TASKS.keys() - {"arena", "chat", "review", "serve"})  # which wait for people
    parser.add_argument("--tasks", nargs="*", default=tasks, choices=tasks)
    parser.add_argument("--flags", action="store_true")
    options = parser.parse_args()
    run = run_by_flags if options.flags else run_all
    environment = child_environment(cache=options.root / "compilation_cache")
    if not (options.root / "stages" / "verified" / "result.json").exists():
        options.root.mkdir(parents=True)
        fill(options.root)
        prepare(Launcher(options.root, options.root / "compilation_cache"))
    # A task whose config is refused as it is would be refused whatever is damaged in it.
    plain = [(task, "none") for task in options.tasks]
    refused = [
        task
        for task, *_, status in run_all(plain, root=options.root, folder=options.out, environment=environment)
        if status
    ]
    print("refused as they are:", *refused)
    tasks = itertools.cycle(task for task in options.tasks if task not in refused)
    jobs = [(next(tasks), options.first + number) for number in range(options.count)]
    statuses: Counter[int] = Counter()

    def work(half: int) -> None:
        for task, seed, fault, status in run(
            jobs[half::2], root=options.root, folder=options.out, environment=environment
        ):
            statuses[status] += 1
            if fault:
                print(f"{task} {seed}: {fault}", flush=True)

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        list(pool.map(work, (0, 1)))
    print(dict(statuses))


if __name__ == "__main__":
    main()
