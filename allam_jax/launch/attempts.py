"""Starts the command of a job and records every attempt: output in `jobs/NAME.log`, results in `jobs/NAME.json`."""

import dataclasses
import os
import socket
import subprocess
import time
from collections.abc import Sequence

from allam_jax.files import read_json, write_json
from allam_jax.launch.jobs import Job

USER_ERROR = 2  # the exit status of run.py for a UserError, with which every further attempt would end too


@dataclasses.dataclass
class Attempt:
    """One start of a job's command; its process is running or ended."""

    job: Job
    process: subprocess.Popen

    def ended(self) -> bool:
        """Whether the process has ended. If it has, the record gets its status and its error."""
        if self.process.poll() is None:
            return False
        status = self.process.returncode
        record = read_json(self.job.record)
        record["attempts"][-1] |= {"status": status, "ended": time.time(), "error": self._error(status)}
        write_json(self.job.record, record)
        return True

    def _error(self, status: int) -> str:
        if self.job.finished:
            return ""
        if status == 0:
            return "stopped before its end; run the same command again to continue"
        lines = self.job.log.read_text(encoding="utf-8", errors="replace").splitlines()
        said = [line for line in lines[-200:] if line.startswith("error: ")] or [line for line in lines if line.strip()]
        return (said[-1] if said else f"exit status {status}")[:300]


def start(job: Job, *, environment: dict[str, str] | None = None, before: Sequence[str] = ()) -> Attempt:
    """Starts the job's command in its own session, so that Ctrl-C at the terminal reaches only the launcher.

    `environment` is added to the job's. `before` is a command that execs the command in its arguments.
    """
    job.folder.mkdir(parents=True, exist_ok=True)
    record = {"started": time.time(), "host": socket.gethostname()}
    with open(job.log, "ab") as log:
        log.write(f"\n==== {time.strftime('%Y-%m-%d %H:%M:%S')} {' '.join(job.command)}\n".encode())
        log.flush()
        process = subprocess.Popen(
            [*before, *job.command],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=os.environ | dict(job.environment) | (environment or {}),
            start_new_session=True,
        )
    write_json(job.record, {"stages": [stage.name for stage in job.stages], "attempts": [*job.attempts, record]})
    return Attempt(job, process)
