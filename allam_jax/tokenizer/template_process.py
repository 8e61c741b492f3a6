"""The process that renders chat templates: started when it is first needed, and anew when a template has cost it."""

import json
import os
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
        with self._lock:
            if self._worker is None or self._worker.poll() is not None:
                self._worker = self._start()
            assert self._worker.stdin is not None
            assert self._worker.stdout is not None
            try:
                self._worker.stdin.write(json.dumps(request).encode() + b"\n")
                self._worker.stdin.flush()
                answer = self._worker.stdout.readline()
                if answer.endswith(b"\n"):
                    return json.loads(answer)
            except BrokenPipeError:
                pass
            except BaseException:  # such as Ctrl-C: what the worker still writes would be taken for the next answer
                self._worker.kill()
                raise
            raise TemplateKilled

    @staticmethod
    def _start() -> "subprocess.Popen[bytes]":
        return subprocess.Popen(
            [sys.executable, "-P", str(_PROGRAM)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C in the terminal is not for it
        )


_current = TemplateProcess()


def _forget() -> None:
    """A forked process must not share its parent's worker, nor a lock that another thread held."""
    global _current
    _current = TemplateProcess()


os.register_at_fork(after_in_child=_forget)


def ask(request: dict[str, Any]) -> dict[str, Any]:
    """`TemplateProcess.ask` of this process's worker."""
    return _current.ask(request)
