"""Starts the command of a job and records every attempt: output in `jobs/NAME.log`, results in `jobs/NAME.json`."""

import dataclasses
import os
import re
import socket
import subprocess
import time
from collections.abc import Sequence

from allam_jax import interrupts
from allam_jax.errors import was_stopped
from allam_jax.files import read_json, write_json
from allam_jax.launch.jobs import Job

# The first line of what ended a command: our own line, a C++ check, a crash of the interpreter, an exception.
_CAUSE = re.compile(r"error: |F\d{4} |Fatal Python error|\*\*\* |[A-Za-z_][\w.]*(?:Error|Exception|Interrupt|Exit)\b")
_NOT_A_CAUSE = re.compile(r"Extension modules: |[IW]\d{4} ")
_LAST_LINES = 2000


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
        if status == 0 or was_stopped(status):
            return "stopped before its end; run the same command again to continue"
        return cause(self.job.log.read_text(encoding="utf-8", errors="replace")) or f"exit status {status}"


def cause(log: str) -> str:
    """The line of a log that says why its last command failed: the first error in it, or else the last line."""
    lines = log.rpartition("\n==== ")[2].splitlines()[1:]
    lines = [line for line in lines[-_LAST_LINES:] if line.strip() and not _NOT_A_CAUSE.match(line)]
    errors = [line for line in lines if _CAUSE.match(line)]
    return (errors[:1] or lines[-1:] or [""])[0][:300]


def start(
    job: Job, *, environment: dict[str, str] | None = None, before: Sequence[str] = (), detach: bool = False
) -> Attempt:
    """Starts the job's command in its own session, so that Ctrl-C at the terminal reaches only the launcher.

    `environment` is added to the job's. `before` is a command that execs the command in its arguments. If this process
    is killed, the command gets SIGTERM, saves and ends, unless `detach` is given.
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
            env=os.environ
            | dict(job.environment)
            | (environment or {})
            | ({} if detach else {interrupts.ENDS_WITH_PARENT: str(os.getpid())}),
            start_new_session=True,
        )
    write_json(job.record, {"stages": [stage.name for stage in job.stages], "attempts": [*job.attempts, record]})
    return Attempt(job, process)
