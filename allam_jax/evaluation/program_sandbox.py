"""Runs programs that a model has written, each in a process that the kernel holds (`program_guard.py`).

A program passes if it comes to its end, which is behind its tests, without an exception. It shares an interpreter with
its tests, as in every harness: one that looks for them could fake its result, but harms nothing.
"""

import dataclasses
import json
import math
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from allam_jax.errors import UserError

PASSED, FAILED, TIMED_OUT, KILLED = STATUSES = ("passed", "failed", "timed out", "killed")
_GUARD = Path(__file__).with_name("program_guard.py")
_UNAVAILABLE = 70  # see program_guard.py
_WAITING = 4  # seconds that may pass for one of processor time, so that a busy machine fails no program
_START = 5.0  # seconds, for the interpreter
_LARGEST_REPORT = 1 << 16
_SHOWN = 300  # characters of an error
_PASSED_ON = "LD_LIBRARY_PATH"  # where some clusters keep the library that this Python is in


@dataclasses.dataclass(frozen=True)
class ProgramOutcome:
    """How a program ended.

    Attributes:
        status: of STATUSES. A program with too little memory fails by MemoryError; `killed` is an end by a signal.
        detail: the exception, or the signal.
        files: what it could read: files of Python; on kernels without Landlock, what `nobody` or the user may.
    """

    status: str
    detail: str = ""
    files: str = ""


def run_program(source: str, *, seconds: int, memory_bytes: int) -> ProgramOutcome:
    """Runs a program in an empty directory without network, other processes, environment, and files to write.

    Args:
        source: Python, with its tests at the end.
        seconds: of processor time.
        memory_bytes: of address space, the interpreter's included.

    Raises:
        UserError: this machine cannot hold programs so; none was run.
    """
    if sys.platform != "linux":
        raise UserError("programs that models write run on Linux only, whose kernel can hold them")
    token = secrets.token_hex(16)
    files = tempfile.TemporaryFile
    with tempfile.TemporaryDirectory() as directory, files() as given, files() as report:
        given.write(f"{token}\n{source}".encode(errors="replace"))
        given.seek(0)
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(_GUARD), str(seconds), str(memory_bytes)],
            stdin=given,
            stdout=report,
            stderr=subprocess.DEVNULL,
            cwd=directory,
            env={name: value for name, value in os.environ.items() if name == _PASSED_ON},
            start_new_session=True,
        )
        end = time.monotonic() + _START + _WAITING * seconds
        try:
            process.wait(end - time.monotonic())
        except subprocess.TimeoutExpired:
            return ProgramOutcome(TIMED_OUT, "waits for something")
        finally:
            process.kill()
            process.wait()
        report.seek(0)
        return _outcome(process.returncode, _read(report.read(_LARGEST_REPORT), token=token))


def check_sandbox(*, seconds: int, memory_bytes: int) -> None:
    """UserError unless an empty program passes: nobody else would know a machine's fault from a program's."""
    outcome = run_program("", seconds=seconds, memory_bytes=memory_bytes)
    if outcome.status != PASSED:
        raise UserError(
            f"programs that models write cannot be run on this machine: an empty one {outcome.status} "
            f"({outcome.detail}); raise config.programs.memory_mib, or use another machine"
        )


def _outcome(status: int, found: dict[str, str] | None) -> ProgramOutcome:
    if found and status == _UNAVAILABLE and "unavailable" in found:
        raise UserError(f"programs that models write cannot be held on this machine ({found['unavailable']})")
    if status == -signal.SIGXCPU:
        return ProgramOutcome(TIMED_OUT, "processor time")
    if status < 0:
        return ProgramOutcome(KILLED, signal.Signals(-status).name)
    if found is None or not {"files", "error"} <= found.keys():
        return ProgramOutcome(FAILED, f"ended by itself before its tests, with status {status}")
    return ProgramOutcome(FAILED if found["error"] else PASSED, found["error"], found["files"])


def _read(report: bytes, *, token: str) -> dict[str, str] | None:
    """The guard's report; None if there is none, or something else was written."""
    try:
        found = json.loads(report)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or found.get("token") != token:
        return None
    # An error can hold half of a surrogate pair, which no file can.
    return {name: str(value)[:_SHOWN].encode(errors="backslashreplace").decode() for name, value in found.items()}


def pass_at_k(samples: int, passed: int, k: int) -> float:
    """The chance that one of k samples passes, unbiased, from so many samples (Chen et al., 2107.03374, equation 1)."""
    if not 0 <= passed <= samples or not 1 <= k <= samples:
        raise ValueError(f"pass@{k} from {passed} of {samples} samples")
    return 1 - math.comb(samples - passed, k) / math.comb(samples, k)
