"""The process that renders chat templates: started when it is first needed, and anew when a template has cost it."""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

_PROGRAM = Path(__file__).with_name("template_worker.py")


class TemplateKilled(Exception):
    """The kernel has ended the process: the template used more time or memory than it may."""


class TemplateProcess:
    """One worker, which threads take in turn. It ends with its parent, whose end closes its standard input."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._worker: subprocess.Popen[bytes] | None = None

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """The worker's answer to a request (see `template_worker.Renderer`); TemplateKilled if it was ended."""
        line = json.dumps(request).encode() + b"\n"
        with self._lock:
            for _ in range(2):
                if self._worker is None:
                    self._worker = self._start()
                try:
                    answer = _exchanged(self._worker, line)
                except BaseException:  # such as Ctrl-C: what the worker still writes would be taken for the next answer
                    self._end()
                    raise
                if answer.endswith(b"\n"):
                    return json.loads(answer)
                if self._end() == -signal.SIGXCPU:
                    break
                # Else something outside may have ended it, perhaps while it was idle: another one shows whose fault.
            raise TemplateKilled

    def _end(self) -> int:
        """Ends the worker and returns its status. Only then is it known to be gone."""
        worker, self._worker = self._worker, None
        assert worker is not None
        worker.kill()
        return worker.wait()

    @staticmethod
    def _start() -> "subprocess.Popen[bytes]":
        return subprocess.Popen(
            [sys.executable, "-P", str(_PROGRAM)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C in the terminal is not for it
        )


def _exchanged(worker: "subprocess.Popen[bytes]", line: bytes) -> bytes:
    """The worker's answer to a line; without a line end if the worker has ended."""
    assert worker.stdin is not None
    assert worker.stdout is not None
    try:
        worker.stdin.write(line)
        worker.stdin.flush()
    except BrokenPipeError:
        return b""
    return worker.stdout.readline()


_current = TemplateProcess()


def _forget() -> None:
    """A forked process must not share its parent's worker, nor a lock that another thread held."""
    global _current
    _current = TemplateProcess()


os.register_at_fork(after_in_child=_forget)


def ask(request: dict[str, Any]) -> dict[str, Any]:
    """`TemplateProcess.ask` of this process's worker."""
    return _current.ask(request)
