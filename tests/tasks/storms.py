"""Storms: kills, signals and full disks at random moments of a training run or of a recipe of all tasks.

    python tests/tasks/storms.py kills --config tests/tasks/tiny.py:ROOT --number 25 --folder /tmp/storm
    python tests/tasks/storms.py signals|disks ...
    python tests/tasks/storms.py kills --config tests/tasks/all_tasks.py:ROOT ...

After each storm the same command is run to its end. Prints what does not hold: tracebacks, hangs, files left behind,
other bits than those of a run that nothing disturbed. ROOT is made by the fixture `launcher` in conftest.py.
"""

import argparse
import hashlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from processes import ROOT, Finished, child_environment, start, wait

# What the clock, the path or the process decides, and what says how often a run was started.
NOT_COMPARED = (
    "tensorboard",
    "report.md",
    "figures",
    "executor",
    "logs",
    ".lock",
    "config.json",
    "files.json",
    "stats",
)
CLOCK = {"seconds", "tokens_per_second", "mfu", "eta", "peak_memory_bytes"}
CLOCK |= {"metrics"}  # of a checkpoint: the hash of metrics.jsonl, which has times
ARRAYS = {"checkpoints", "params"}  # folders of files with arrays
NANOSECONDS = 10**18  # times of files, in the records of what was read
HANG_SECONDS = 150


class Storm:
    """One command that is disturbed again and again, and the bytes that it must come to."""

    def __init__(self, folder: Path, *, config: str, flags: Sequence[str] = (), cache: Path | None = None):
        """Runs the command once, undisturbed, or twice without a compilation cache that is warm."""
        self.disk, self.config, self.flags = folder / "disk", config, list(flags)
        self.workdir = self.disk / "run"  # always the same, because names of runs and hashes of mixtures depend on it
        self.disk.mkdir()
        self.environment = child_environment(cache=cache or folder / "compiled")
        self.faults: list[str] = []
        self.seconds = 0.0
        self.expected: dict[str, str] = {}
        for _ in range(2 if cache is None else 1):
            begin = time.monotonic()
            done = wait(self.start())
            self.seconds = time.monotonic() - begin
            assert done.status == 0, done.err[-3000:]
            earlier, self.expected = self.expected, content(self.workdir)
            different = [
                name for name in self.expected if earlier.get(name, self.expected[name]) != self.expected[name]
            ]
            assert different == [], "two undisturbed runs differ"
            shutil.rmtree(self.workdir)

    def start(self) -> subprocess.Popen:
        """Starts the command."""
        command = [sys.executable, ROOT / "run.py", f"--config={self.config}", f"--workdir={self.workdir}", *self.flags]
        return start(command, environment=self.environment)

    def end(self, process: subprocess.Popen, *, what: str, statuses: Sequence[int]) -> Finished:
        """Waits for the end and notes a hang, a traceback or another status."""
        try:
            done = wait(process, timeout=HANG_SECONDS)
        except subprocess.TimeoutExpired:
            self.faults.append(f"{what}: hangs")
            return Finished(-9, "", "")
        for words in ("Traceback", "Exception ignored"):
            if words in done.err:
                self.faults.append(f"{what}: {words}: ...{done.err[-1500:]}")
        if done.status not in statuses:
            self.faults.append(f"{what}: status {done.status}: ...{done.err[-1500:]}")
        return done

    def complete(self, *, what: str) -> None:
        """Runs the command to its end, compares what is there with the undisturbed run, and removes it."""
        self.end(self.start(), what=f"{what}, then undisturbed", statuses=(0,))
        found = content(self.workdir)
        for name in sorted(self.expected.keys() | found.keys()):
            if self.expected.get(name) != found.get(name):
                self.faults.append(f"{what}: {name} differs from the undisturbed run")
        self.faults += [f"{what}: left behind: {path}" for path in left_behind(self.workdir)]
        shutil.rmtree(self.workdir, ignore_errors=True)

    def moment(self) -> float:
        """Seconds after the start, anywhere in the run."""
        return random.uniform(0, self.seconds * 1.02)


def content(workdir: Path) -> dict[str, str]:
    """Relative path -> hash of what must be the same in two runs; without what the clock decides.

    Arrays are compared by the hashes that were taken of them before they were written.
    """
    found = {}
    for path in sorted(workdir.rglob("*")):
        name = str(path.relative_to(workdir))
        if path.name == "files.json" and (arrays := json.loads(path.read_bytes())["arrays"]):
            found[f"arrays of {path.parent.relative_to(workdir)}"] = json.dumps(arrays)
        if path.is_dir() or any(part in name for part in NOT_COMPARED):
            continue
        data = path.read_bytes()
        if path.name == "metrics.jsonl":
            data = b"\n".join(_timeless(line) for line in data.splitlines())
        elif path.suffix == ".json":
            data = _timeless(data)
        elif ARRAYS & set(path.parts):
            continue  # TensorStore's files differ in their order
        found[name] = hashlib.sha256(data).hexdigest()
    return found


def _timeless(data: bytes) -> bytes:
    def without(value):
        if isinstance(value, dict):
            return {key: without(item) for key, item in value.items() if key not in CLOCK}
        if isinstance(value, list):
            return [without(item) for item in value]
        return None if isinstance(value, int) and value > NANOSECONDS else value

    return json.dumps(without(json.loads(data))).encode()


def left_behind(workdir: Path) -> list[str]:
    """Temporary files that no run removes any more."""
    marks = (".tmp", ".old", ".deleted", "checkpoint-tmp")
    return [str(path) for path in workdir.rglob("*") if any(mark in path.name for mark in marks)]


def kills(storm: Storm, number: int) -> None:
    """kill -9, `number` times, in chains of up to five on one workdir."""
    done = 0
    while done < number:
        for link in range(min(random.randint(1, 5), number - done)):
            begin, process = time.monotonic(), storm.start()
            try:
                _, err = process.communicate(timeout=storm.moment())
                if process.returncode:
                    storm.faults.append(f"{done} kills: status {process.returncode}: ...{err[-1500:]}")
                if link == 0:  # a whole run: other load on the machine has gone since the last was measured
                    storm.seconds = min(storm.seconds, time.monotonic() - begin)
                break  # it has come to its end
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()
                done += 1
        storm.complete(what=f"{done} kills")


def signals(storm: Storm, number: int) -> None:
    """SIGTERM, SIGINT and SIGHUP in turn, each on a workdir of its own; then the run is completed."""
    for index in range(number):
        name = ("SIGTERM", "SIGINT", "SIGHUP")[index % 3]
        seconds = storm.moment()
        process = storm.start()
        time.sleep(seconds)
        process.send_signal(getattr(signal, name))
        what = f"{name} after {seconds:.2f} s"
        # Before Python has come to our first line, the signal does what it does to any program.
        early = (-getattr(signal, name), 1) if seconds < 0.3 else ()
        storm.end(process, what=what, statuses=(0, 128 + getattr(signal, name), *early))
        if index % 5 == 4:
            storm.complete(what=what)


def disks(storm: Storm, number: int) -> None:
    """A file system that is full from a random moment on, until there is room again."""
    for index in range(number):
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200m", "tmpfs", str(storm.disk)], check=True)
        try:
            seconds = storm.moment()
            process = storm.start()
            time.sleep(seconds)
            filler = storm.disk / "filler"
            with open(filler, "wb", buffering=0) as file, _no_space():
                while True:
                    file.write(bytes(1 << 16))
            storm.end(process, what=f"disk {index} full after {seconds:.2f} s", statuses=(0, 2))
            filler.unlink()
            storm.complete(what=f"disk {index} full after {seconds:.2f} s")
        finally:
            subprocess.run(["umount", "-l", str(storm.disk)], check=True)


class _no_space:
    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        return isinstance(error, OSError)


STORMS: dict[str, Callable[[Storm, int], None]] = {"kills": kills, "signals": signals, "disks": disks}


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("storm", choices=STORMS)
    parser.add_argument("--config", required=True)
    parser.add_argument("--number", type=int, default=25)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    arguments, flags = parser.parse_known_args()
    random.seed(arguments.seed)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    arguments.folder.mkdir(parents=True)
    storm = Storm(arguments.folder, config=arguments.config, flags=flags)
    begin = time.monotonic()
    STORMS[arguments.storm](storm, arguments.number)
    took = time.monotonic() - begin
    print(
        f"{arguments.number} {arguments.storm} in {took:.0f} s ({storm.seconds:.1f} s a run): "
        f"{len(storm.faults)} faults"
    )
    for fault in storm.faults:
        print(f"- {fault}")
    sys.exit(bool(storm.faults))


if __name__ == "__main__":
    os.chdir(ROOT)
    main()
