"""Starts the command of a job and records every attempt: output in `jobs/NAME.log`, results in `jobs/NAME.json`."""

import dataclasses
import os
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from allam_jax.files import read_json, write_json
from allam_jax.launch.jobs import Job

USER_ERROR = 2  # the exit status of run.py for a UserError, with which every further attempt would end too


@dataclasses.dataclass
class Attempt:
    """One start of a job's command.

    Attributes:
        job: the job that was started.
        folder: the folder of logs and records.
        process: the process of the command, running or ended.
    """

    job: Job
    folder: Path
    process: subprocess.Popen

    def ended(self) -> bool:
        """Whether the process has ended. If it has, the record gets its status and its error."""
        if self.process.poll() is None:
            return False
        status = self.process.returncode
        path = record_path(self.folder, self.job.name)
        record = read_json(path)
        record["attempts"][-1] |= {"status": status, "ended": time.time(), "error": self._error(status)}
        write_json(path, record)
        return True

    def _error(self, status: int) -> str:
        if self.job.finished:
            return ""
        if status == 0:
            return "stopped before its end; run the same command again to continue"
        lines = log_path(self.folder, self.job.name).read_text(encoding="utf-8", errors="replace").splitlines()
        said = [line for line in lines[-200:] if line.startswith("error: ")] or [line for line in lines if line.strip()]
        return (said[-1] if said else f"exit status {status}")[:300]


def start(job: Job, *, folder: Path, environment: Mapping[str, str], before: Sequence[str] = ()) -> Attempt:
    """Starts the job's command in its own session, so that Ctrl-C at the terminal reaches only the launcher.

    Args:
        job: the job to start.
        folder: the folder of logs and records.
        environment: variables to add to those of this process.
        before: a command that execs the command in its arguments.
    """
    folder.mkdir(parents=True, exist_ok=True)
    record = {"started": time.time(), "host": socket.gethostname()}
    with open(log_path(folder, job.name), "ab") as log:
        log.write(f"\n==== {time.strftime('%Y-%m-%d %H:%M:%S')} {' '.join(job.command)}\n".encode())
        log.flush()
        process = subprocess.Popen(
            [*before, *job.command],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=os.environ | dict(environment),
            start_new_session=True,
        )
    path = record_path(folder, job.name)
    attempts = read_attempts(folder, job.name)
    write_json(path, {"stages": [stage.name for stage in job.stages], "attempts": [*attempts, record]})
    return Attempt(job, folder, process)


def read_attempts(folder: Path, name: str) -> list[dict[str, Any]]:
    """The attempts at a job, oldest first: started, host and, after the end, ended, status and error (or "")."""
    path = record_path(folder, name)
    return read_json(path)["attempts"] if path.exists() else []


def log_path(folder: Path, name: str) -> Path:
    """The file with a job's output."""
    return folder / f"{name}.log"


def record_path(folder: Path, name: str) -> Path:
    """The file with the record of a job's attempts."""
    return folder / f"{name}.json"
