"""What is started: jobs of stages, so that a stage which several runs share is computed once and before them.

Stages that the same runs need make one job; a run's own stages are its last job. A job starts when those it reads from
have finished. It is an ordinary call of run.py, which anybody can repeat by hand.
"""

import dataclasses
import sys
from pathlib import Path

from allam_jax.launch.runs import RECIPE_FILE, Run
from allam_jax.tasks.recipe import Stage, is_finished

ROOT = Path(__file__).resolve().parents[2]


@dataclasses.dataclass(frozen=True)
class Job:
    """Some stages of a run, computed in one process (or one per host), in order.

    Attributes:
        name: of its log and record; the run's name where no other run needs them.
        run: whose recipe they are taken from; others that need the same stages find them finished.
        runs: the names of the runs that need them.
        stages: in order.
        after: names of the jobs that must finish first.
    """

    name: str
    run: Run
    runs: tuple[str, ...]
    stages: tuple[Stage, ...]
    after: tuple[str, ...]

    @property
    def directories(self) -> list[Path]:
        """Where its stages lie."""
        return [self.run.directories[stage.name] for stage in self.stages]

    @property
    def finished(self) -> bool:
        """Whether all of its stages have."""
        return all(is_finished(directory) for directory in self.directories)

    @property
    def command(self) -> list[str]:
        """The command line that computes what has not finished."""
        return [
            sys.executable,
            str(ROOT / "run.py"),
            f"--config={ROOT / 'configs' / 'saved.py'}:{self.run.workdir / RECIPE_FILE}",
            f"--workdir={self.run.workdir}",
            f"--store={self.run.store}",
            f"--stage={','.join(stage.name for stage in self.stages)}",
        ]


def plan_jobs(runs: list[Run]) -> list[Job]:
    """The jobs of a sweep, those that others wait for first."""
    users: dict[str, list[str]] = {}
    for run in runs:
        for stage in run.stages:
            users.setdefault(stage.fingerprint, []).append(run.name)
    members: dict[tuple[str, ...], list[tuple[Run, Stage]]] = {}
    placed: set[str] = set()
    for run in runs:
        for stage in run.stages:
            if stage.fingerprint not in placed:
                placed.add(stage.fingerprint)
                members.setdefault(tuple(users[stage.fingerprint]), []).append((run, stage))
    names = {users_of: _name(users_of, [stage for _, stage in group]) for users_of, group in members.items()}
    jobs = []
    # A stage that another reads is needed by all who need that other: the widely needed come first.
    for users_of, group in sorted(members.items(), key=lambda item: -len(item[0])):
        run = group[0][0]
        fingerprints = {stage.name: stage.fingerprint for stage in run.stages}
        reads = {tuple(users[fingerprints[used]]) for _, stage in group for used in stage.uses} - {users_of}
        after = tuple(sorted(names[other] for other in reads))
        jobs.append(Job(names[users_of], run, users_of, tuple(stage for _, stage in group), after))
    return jobs


def _name(users: tuple[str, ...], stages: list[Stage]) -> str:
    if len(users) == 1:
        return users[0]
    ends = [stages[0].name] if len(stages) == 1 else [stages[0].name, "to", stages[-1].name]
    return "-".join(["shared", *ends, stages[0].fingerprint[:6]])
