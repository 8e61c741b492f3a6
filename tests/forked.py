"""Python processes that begin with what our tasks import, which takes seconds: forks of a server that has imported it.

A fork runs a script or `-c CODE` as `__main__`, with its own environment, streams, signals and exit. The seed of
Python's hashes is the server's, so a test that two runs give the same bits starts a process of its own. At its end it
waits for threads and calls exit handlers, as Python does, but takes no objects apart: that would copy all memory that
it shares with the server.
"""

import atexit
import concurrent.futures
import functools
import gc
import importlib
import json
import logging
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
_TASKS = "corpus", "evaluate", "expand", "export", "merge", "merge_tokenizer", "plan", "tokenize", "tokenizer", "train"
# What tasks import late.
_LATE = "configs.base", "matplotlib.figure", "matplotlib.backends.backend_agg", "tensorflow_datasets"
_MESSAGE = 1 << 20  # bytes; the environment is far smaller


class Forked:
    """A process as `subprocess.Popen` with pipes shows it; starts `command`, a script or `-c CODE` and arguments."""

    def __init__(self, command: Sequence[Any], *, environment: Mapping[str, str]):
        self.args = list(map(str, command))
        self.returncode: int | None = None
        (self._report, reporter), (out, out_end), (err, err_end) = socket.socketpair(), os.pipe(), os.pipe()
        request = json.dumps({"command": self.args, "environment": dict(environment)}).encode()
        assert len(request) < _MESSAGE
        with reporter, open(os.devnull) as nothing:
            ends = [nothing.fileno(), out_end, err_end, reporter.fileno()]
            socket.send_fds(_server(), [request], ends)
        for end in (out_end, err_end):
            os.close(end)
        # Read from the start, so that a full pipe stops nobody.
        pool = concurrent.futures.ThreadPoolExecutor(2)
        self._streams = [pool.submit(_read, stream) for stream in (out, err)]
        pool.shutdown(wait=False)
        self.pid = int(self._next_report(timeout=60))

    def _next_report(self, *, timeout: float | None) -> str:
        """A line of the process's keeper; empty if none comes in time."""
        if not select.select([self._report], [], [], timeout)[0]:
            return ""
        line = b""
        while not line.endswith(b"\n"):
            line += self._report.recv(1) or b"the server of the forks is gone\n"
        return line.decode()

    def poll(self) -> int | None:
        """The exit status, minus the signal's number after one, or None while it runs."""
        if self.returncode is None and (status := self._next_report(timeout=0)):
            self.returncode = int(status)
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Does nothing once the process has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """What it wrote to stdout and stderr, after its end; subprocess.TimeoutExpired if that does not come."""
        if self.returncode is None:
            if not (status := self._next_report(timeout=timeout)):
                raise subprocess.TimeoutExpired(self.args, timeout or 0)
            self.returncode = int(status)
            self._report.close()
        out, err = (stream.result(timeout=60) for stream in self._streams)
        return out, err


def _read(stream: int) -> str:
    with open(stream, encoding="utf-8", errors="replace") as file:
        return file.read()


@functools.cache
def _server() -> socket.socket:
    """Where requests are sent to a server, which ends with this process."""
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    # Without the variable by which the stand-in for Slurm finds the processes that it ends: this one outlives the test.
    foreign = ("JAX_", "XLA_", "FAKE_SLURM")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    path = os.pathsep.join(map(str, (ROOT, ROOT / "tests", ROOT / "tests" / "tasks")))
    with its:
        subprocess.Popen(
            [sys.executable, __file__, str(its.fileno())],
            env=inherited | {"PYTHONPATH": path},
            cwd=ROOT,
            pass_fds=[its.fileno()],
            stdin=subprocess.DEVNULL,
        )
    return ours


def _serve(requests: socket.socket) -> None:
    """Forks a keeper for each request; in a fork's fork, returns after the run."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the keepers
    while True:
        message, descriptors, *_ = socket.recv_fds(requests, _MESSAGE, 4)
        if not message:
            return
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            requests.close()
            *streams, report = descriptors
            child = os.fork()
            if child == 0:
                os.close(report)
                _become(**json.loads(message), streams=streams)
                return
            for stream in streams:
                os.close(stream)
            os.write(report, b"%d\n" % child)
            os.write(report, b"%d\n" % os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
            os._exit(0)
        for descriptor in descriptors:
            os.close(descriptor)


def _become(*, command: list[str], environment: dict[str, str], streams: list[int]) -> None:
    """Runs the command here."""
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.environ.clear()
    os.environ.update(environment)
    _read_jax_variables()
    status: Any = 0
    try:
        if command[0] == "-c":
            sys.argv = ["-c", *command[2:]]
            exec(command[1], {"__name__": "__main__"})
        else:
            sys.argv = command
            runpy.run_path(command[0], run_name="__main__")
    except SystemExit as stop:
        if isinstance(stop.code, str):
            print(stop.code, file=sys.stderr)
        status = 1 if isinstance(stop.code, str) else stop.code or 0
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _read_jax_variables() -> None:
    """What JAX does with its variables when it is imported."""
    import jax  # in the server only: the tests set those variables before they import JAX

    for name, before in jax.config.values.items():
        if (text := os.environ.get(name.upper())) is not None:
            parse = {bool: lambda text: text.lower() in ("1", "true"), int: int, float: float}.get(type(before), str)
            jax.config.update(name, parse(text))


if __name__ == "__main__":
    warnings.filterwarnings("ignore", message=r"os\.fork\(\) was called")  # JAX's, whose threads do not run yet
    for name in (*(f"allam_jax.tasks.{task}" for task in _TASKS), *_LATE):
        importlib.import_module(name)
    gc.freeze()  # so that no collection in a fork copies the memory that it shares
    logging.getLogger().handlers.clear()  # run.py sets up its log before it imports the libraries that would do so
    _serve(socket.socket(fileno=int(sys.argv[1])))
