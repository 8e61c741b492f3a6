"""The connections between the processes of a job, from their meeting (`rendezvous.py`) to their end.

Each process has one to process 0. They carry three things:

- Ends. A process that dies closes its connection; one that fails says why first. All others then leave at once, instead
  of waiting in a collective until JAX's own service gives the dead one up.
- Places. Each says every two seconds which step and phase it is in, so that a watchdog can name those that are late or
  do not answer. Process 0 hears it of all others, and they hear it of process 0.
- Stops. When one process is asked to stop, all agree on a step after which they do. Process 0 lets every process halt
  before its next step (`freeze`), hears how far each has come, and tells all to stop after the step that follows the
  farthest one.

A message is one line of JSON. Only the thread of the lifeline sends and receives.
"""

import contextlib
import json
import os
import queue
import selectors
import socket
import sys
import threading
import time
from collections.abc import Mapping
from typing import Any

from allam_jax import watchdog
from allam_jax.errors import PEER_ENDED, USER_ERROR, was_stopped

_PLACE_EVERY_SECONDS = 2.0
_ANSWER_SECONDS = 10.0  # a process that has said nothing for so long is stopped, or its machine hangs
_ECHO_SECONDS = 0.5  # in which a process may find the error itself that another one has reported
_LAST_SECONDS = 30.0  # in which the others end before process 0 does
_READ_BYTES = 65_536

Round = tuple[int, int]  # (loop, step): a recipe trains in several loops, each of which counts from its first step


class Lifeline:
    """This process's end of the connections."""

    def __init__(self, process_id: int, connections: Mapping[int, socket.socket], *, num_processes: int):
        """Starts the thread. `connections`: to all others on process 0, and to process 0 on all others."""
        self._me, self._size = process_id, num_processes
        self._connections = dict(connections)
        self._outbox: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._waking, self._wake = os.pipe()
        self._condition = threading.Condition()
        self._round: Round = (0, 0)  # the last one that this process has finished
        self._frozen = False
        self._stop: tuple[Round, str] | None = None
        self._halted: dict[int, Round] = {}  # on process 0: who has answered, while the others are frozen
        self._places: dict[int, watchdog.Place] = {}
        self._heard: dict[int, float] = {}  # when each has last said its place, by time.monotonic()
        self._finished: set[int] = set()
        self._gone: set[int] = set()
        self._leaving = threading.Event()
        self._sent = threading.Event()
        self._all_finished, self._all_gone = threading.Event(), threading.Event()
        for connection in self._connections.values():
            connection.settimeout(10)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for option, value in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3)):
                connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
        threading.Thread(target=self._serve, name="lifeline", daemon=True).start()

    # -- for the main thread and for handlers of signals ---------------------------------------------------------------

    def begin_loop(self) -> None:
        """A loop over steps begins."""
        with self._condition:
            self._round = (self._round[0] + 1, -1)

    def stop_after(self, step: int) -> str | None:
        """The name of the signal if all processes stop after `step`, else None. Each calls it at every step."""
        with self._condition:
            while self._frozen:
                self._condition.wait(1.0)
            self._round = (self._round[0], step)
            return self._stop[1] if self._stop and self._round >= self._stop[0] else None

    def request_stop(self, name: str) -> None:
        """Asks all processes to stop, because this one has got the signal of this name."""
        self._send({"stop": name})

    def places(self) -> list[watchdog.Place | None]:
        """Where each process is; None for those that this one hears nothing of."""
        places = [watchdog.place() if index == self._me else self._places.get(index) for index in range(self._size)]
        for index, heard in list(self._heard.items()):
            if time.monotonic() - heard > _ANSWER_SECONDS:
                places[index] = self._places[index]._replace(phase=watchdog.NO_ANSWER, since=heard)
        return places

    def finish(self, *, timeout_seconds: float | None = None) -> None:
        """Returns when all processes have done their work, or after a time; then call `os._exit`.

        JAX's own shutdown would wait in C++ for a process that has died. Process 0, which serves the others, goes last.
        """
        self._finished.add(self._me)
        self._send({"finished": True})
        self._all_finished.wait(timeout_seconds)
        if self._me == 0:
            self._all_gone.wait(_LAST_SECONDS)

    def end(self, reason: str, status: int) -> None:
        """Tells the others that this process ends now; if another one has ended before, its end ends this process.

        The caller then leaves with `os._exit`.
        """
        if self._leaving.wait(0.2 if status == USER_ERROR else 1.0):
            time.sleep(60)  # the thread of the lifeline ends the process before
        self._send({"ended": self._me, "reason": reason, "status": status})
        self._sent.wait(1.0)

    # -- the thread ----------------------------------------------------------------------------------------------------

    def _send(self, message: dict[str, Any]) -> None:
        self._outbox.put(message)
        os.write(self._wake, b"x")

    def _serve(self) -> None:
        selector = selectors.DefaultSelector()
        selector.register(self._waking, selectors.EVENT_READ, None)
        buffers = dict.fromkeys(self._connections, b"")
        for index, connection in self._connections.items():
            selector.register(connection, selectors.EVENT_READ, index)
        due = time.monotonic()
        while True:
            for key, _ in selector.select(max(due - time.monotonic(), 0.01)):
                if key.data is None:
                    os.read(self._waking, _READ_BYTES)
                    continue
                data = self._receive(key.data)
                buffers[key.data] += data
                *lines, buffers[key.data] = buffers[key.data].split(b"\n")
                for line in lines:
                    self._handle(key.data, json.loads(line))
                if not data:
                    selector.unregister(key.fileobj)
                    self._lost(key.data)
            while not self._outbox.empty():
                self._handle(self._me, self._outbox.get())
            now = time.monotonic()
            if now >= due:
                due, here = now + _PLACE_EVERY_SECONDS, watchdog.place()
                self._tell_all({"at": [here.step, here.phase, round(now - here.since, 3)]})

    def _receive(self, index: int) -> bytes:
        try:
            return self._connections[index].recv(_READ_BYTES)
        except OSError:
            return b""

    def _tell(self, index: int, message: dict[str, Any]) -> None:
        with contextlib.suppress(OSError):  # it has ended, which the reading side finds out
            self._connections[index].sendall(json.dumps(message).encode() + b"\n")

    def _tell_all(self, message: dict[str, Any], *, but: int = -1) -> None:
        for index in self._connections:
            if index != but:
                self._tell(index, message)

    def _handle(self, sender: int, message: dict[str, Any]) -> None:
        """What process 0 and the others do with a message; one's own goes to process 0, whoever that is."""
        if self._me and sender == self._me:
            self._tell(0, message)
            if "ended" in message:
                self._sent.set()
        elif "at" in message:
            step, phase, silent = message["at"]
            now = time.monotonic()
            self._places[sender] = watchdog.Place(step, phase, now - silent)
            self._heard[sender] = now
        elif "finished" in message:
            self._finished.add(sender)
            if self._me == 0 and len(self._finished) == self._size:
                self._tell_all({"all_finished": True})
                self._all_finished.set()
        elif "all_finished" in message:
            self._finished.add(sender)
            self._all_finished.set()
        elif "ended" in message:
            self._tell_all(message, but=sender)
            if sender == self._me:
                self._sent.set()
            elif not self._sent.is_set():
                self._leave(**message)
        elif "stop" in message:
            if not self._halted and self._stop is None:
                self._tell_all({"freeze": message["stop"]})
                self._halt(self._freeze(), of=self._me, name=message["stop"])
        elif "halted" in message:
            self._halt(tuple(message["halted"]), of=sender, name=message["name"])
        elif "freeze" in message:
            self._tell(0, {"halted": self._freeze(), "name": message["freeze"]})
        elif "go_on_to" in message:
            self._go_on(tuple(message["go_on_to"]), message["name"])

    def _freeze(self) -> Round:
        with self._condition:
            self._frozen = True
            return self._round

    def _halt(self, where: Any, *, of: int, name: str) -> None:
        self._halted[of] = where
        if len(self._halted) == self._size:
            loop, step = max(self._halted.values())
            self._halted.clear()
            self._tell_all({"go_on_to": [loop, step + 1], "name": name})
            self._go_on((loop, step + 1), name)

    def _go_on(self, where: Any, name: str) -> None:
        with self._condition:
            self._stop, self._frozen = (where, name), False
            self._condition.notify_all()

    def _lost(self, index: int) -> None:
        """A connection has closed: the other process has ended, and has not said why."""
        self._gone.add(index)
        if len(self._gone) == len(self._connections):
            self._all_gone.set()
        if self._all_finished.is_set() or self._sent.is_set():
            return
        reason = "without a word: it was killed, or its machine is gone"
        message: dict[str, Any] = {"ended": index, "reason": reason, "status": PEER_ENDED}
        self._tell_all(message, but=index)
        self._leave(**message)

    def _leave(self, *, ended: int, reason: str, status: int) -> None:
        self._leaving.set()
        if status == USER_ERROR:
            time.sleep(_ECHO_SECONDS)
        if reason.startswith("error: "):
            line = f"error: process {ended} of {self._size}: {reason.removeprefix('error: ')}"
        else:
            line = f"process {ended} of {self._size} has ended: {reason}"
            line = (
                line if was_stopped(status) else f"error: {line}; run the same command again in all processes to go on"
            )
        os.write(2, f"\n{line}\n".encode(errors="backslashreplace"))
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(status)


_joined: list[Lifeline] = []


def join(lifeline: Lifeline) -> None:
    """Makes it the one of this process."""
    _joined.append(lifeline)


def current() -> Lifeline | None:
    """The one of this process; None for a job of one process."""
    return _joined[-1] if _joined else None
