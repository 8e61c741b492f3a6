"""Groups the stages of a sweep into jobs, so that a stage which several runs share is computed once.

Stages that the same runs need form one job. The stages of a single run form its last job. A job starts after the jobs
whose results it reads. Its command is an ordinary call of run.py, which can be repeated by hand.
"""

import dataclasses
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from allam_jax.files import read_json
from allam_jax.launch.runs import RECIPE_FILE, SweepRun
from allam_jax.tasks.recipe import Stage, is_finished

ROOT = Path(__file__).resolve().parents[2]


@dataclasses.dataclass(frozen=True)
class Job:
    """Some stages of a run, which one process (or one per host) computes in order.

    Attributes:
        name: the name of log and record; the run's name if only one run needs the stages.
        run: the run whose recipe has the stages. Other runs that need the stages find them finished.
        runs: the names of all runs that need the stages.
        stages: the stages in order.
        after: the names of the jobs that must finish first.
        folder: the folder of logs and records.
        environment: variables of the command, in addition to those of the launcher.
    """

    name: str
    run: SweepRun
    runs: tuple[str, ...]
    stages: tuple[Stage, ...]
    after: tuple[str, ...]
    folder: Path
    environment: Mapping[str, str]

    @property
    def directories(self) -> list[Path]:
        """The directories of the stages."""
        return [self.run.directories[stage.name] for stage in self.stages]

    @property
    def finished(self) -> bool:
        """Whether all stages have finished."""
        return all(is_finished(directory) for directory in self.directories)

    @property
    def command(self) -> list[str]:
        """The command line that computes the unfinished stages."""
        return [
            sys.executable,
            str(ROOT / "run.py"),
            f"--config={ROOT / 'configs' / 'saved.py'}:{self.run.workdir / RECIPE_FILE}",
            f"--workdir={self.run.workdir}",
            f"--store={self.run.store}",
            f"--stage={','.join(stage.name for stage in self.stages)}",
        ]

    @property
    def log(self) -> Path:
        """The file with the output of all attempts."""
        return self.folder / f"{self.name}.log"

    @property
    def record(self) -> Path:
        """The file with the record of all attempts."""
        return self.folder / f"{self.name}.json"

    @property
    def attempts(self) -> list[dict[str, Any]]:
        """The attempts, oldest first: started, host and, after the end, ended, status and error (or "")."""
        return read_json(self.record, keys={"attempts": list})["attempts"] if self.record.exists() else []


def plan_jobs(runs: list[SweepRun], *, folder: Path, environment: Mapping[str, str]) -> list[Job]:
    """The jobs of a sweep; each comes after the jobs that it waits for.

    All get `folder` and `environment`, and each a variable with its name for Weights & Biases.
    """
    users: dict[str, list[str]] = {}
    for run in runs:
        for stage in run.stages:
            users.setdefault(stage.fingerprint, []).append(run.name)
    members: dict[tuple[str, ...], list[tuple[SweepRun, Stage]]] = {}
    placed: set[str] = set()
    for run in runs:
        for stage in run.stages:
            if stage.fingerprint not in placed:
                placed.add(stage.fingerprint)
                members.setdefault(tuple(users[stage.fingerprint]), []).append((run, stage))
    names = {users_of: _name(users_of, [stage for _, stage in group]) for users_of, group in members.items()}
    jobs = []
    # All runs that need a stage also need the stages that it reads, so these have at least as many users.
    for users_of, group in sorted(members.items(), key=lambda item: -len(item[0])):
        run = group[0][0]
        fingerprints = {stage.name: stage.fingerprint for stage in run.stages}
        reads = {tuple(users[fingerprints[used]]) for _, stage in group for used in stage.uses} - {users_of}
        after = tuple(sorted(names[other] for other in reads))
        name, stages = names[users_of], tuple(stage for _, stage in group)
        jobs.append(Job(name, run, users_of, stages, after, folder, {**environment, "WANDB_NAME": name}))
    return jobs


def _name(users: tuple[str, ...], stages: list[Stage]) -> str:
    if len(users) == 1:
        return users[0]
    ends = [stages[0].name] if len(stages) == 1 else [stages[0].name, "to", stages[-1].name]
    return "-".join(["shared", *ends, stages[0].fingerprint[:6]])
