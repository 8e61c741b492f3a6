"""All processes of a job meet before JAX starts.

`jax.distributed` ends the process with a C++ stack trace if it cannot reach the coordinator, if a process is missing or
if the port is taken. This file tries the same host and port with a plain socket first. What is wrong becomes a message,
and JAX starts only when all processes are there.

The protocol is one line of JSON each way. A process sends `{"process_id", "num_processes", "facts"}`. When all have
come with the same facts, the coordinator answers `{"go": true}`; otherwise it answers `{"error": ...}`. The connections
stay open as the job's lifeline (`lifeline.py`).
"""

import contextlib
import json
import select
import socket
import time
from collections.abc import Iterator, Mapping
from typing import Any

from absl import logging

from allam_jax.errors import UserError
from allam_jax.parallel.lifeline import Lifeline

_LINE = 1 << 24  # bytes, at most: the facts are a whole config
_CHUNK = 65_536
_HOLDER_SECONDS = 3.0  # in which a process that listens at one's own port answers
_SAY_AFTER_SECONDS = (10, 30, 60, 120, 240)  # of waiting


def meet(
    *,
    coordinator: str,
    num_processes: int,
    process_id: int,
    timeout_seconds: float,
    facts: Mapping[str, Any] | None = None,
    source: str = "",
) -> Lifeline:
    """Returns on every process once all `num_processes` have called it; gives what connects them from then on.

    After 10 s it logs for whom it waits.

    Args:
        coordinator: `host:port` of process 0, which listens there on all interfaces.
        num_processes: how many must come.
        process_id: 0 is the coordinator.
        timeout_seconds: how long to wait for the others.
        facts: what must be the same on all processes, name -> JSON-able value.
        source: where the number of processes comes from, for messages.

    Raises:
        UserError: the address is malformed, unreachable or taken; processes are missing, or disagree about the job.
    """
    host, port = _split(coordinator)
    deadline = time.monotonic() + timeout_seconds
    hello = {"process_id": process_id, "num_processes": num_processes, "facts": dict(facts or {})}
    if process_id == 0:
        connections = _receive_all(coordinator, port=port, hello=hello, deadline=deadline, source=source)
    else:
        connections = {0: _report((host, port), hello=hello, deadline=deadline, timeout_seconds=timeout_seconds)}
    return Lifeline(process_id, connections, num_processes=num_processes)


class _Patience:
    """Logs a line when the waiting has taken 10 s, and a few times later."""

    def __init__(self, deadline: float):
        self._started, self._deadline = time.monotonic(), deadline
        self._left = list(_SAY_AFTER_SECONDS)

    def seconds(self) -> float:
        """How long to wait at most before `say`, or before giving up."""
        due = [self._started + self._left[0]] if self._left else []
        return max(min([self._deadline, *due]) - time.monotonic(), 0.01)

    def say(self, line: str) -> None:
        """Logs the line if it is due."""
        now = time.monotonic()
        if self._left and now >= self._started + self._left[0]:
            del self._left[0]
            logging.warning("%s; giving up in %.0f s", line, self._deadline - now)


def _split(coordinator: str) -> tuple[str, int]:
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise UserError(f"coordinator {coordinator!r}: expected host:port of process 0, such as 10.0.0.1:61500")
    return host.strip("[]"), int(port)


def _receive_all(
    coordinator: str, *, port: int, hello: Mapping[str, Any], deadline: float, source: str
) -> dict[int, socket.socket]:
    num_processes = hello["num_processes"]
    family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
    try:
        server = socket.create_server(
            ("", port), family=family, backlog=num_processes, dualstack_ipv6=family == socket.AF_INET6
        )
    except OSError as error:
        told = _told_at(port, hello=hello) or (
            f"process 0 cannot listen on port {port} ({error.strerror}); choose another port, or end the process that "
            "holds it"
        )
        raise UserError(f"coordinator {coordinator}: {told}") from None
    arrived: dict[int, socket.socket] = {}
    patience = _Patience(deadline)
    problem = None
    with server:
        while problem is None and len(arrived) < num_processes - 1:
            missing = ", ".join(str(i) for i in range(1, num_processes) if i not in arrived)
            advice = f" ({source} says {num_processes}; for a run of one process, unset it)" if source else ""
            if time.monotonic() >= deadline:
                problem = f"process(es) {missing} of {num_processes} did not come in time{advice}"
                break
            patience.say(f"waiting at {coordinator} for process(es) {missing} of {num_processes}{advice}")
            server.settimeout(patience.seconds())
            try:
                connection, _ = server.accept()
            except TimeoutError:
                continue
            theirs = _read(connection, deadline=min(deadline, time.monotonic() + 5))
            process_id = theirs.get("process_id")
            if not isinstance(process_id, int):
                connection.close()  # another program, such as a port scanner
            elif theirs.get("num_processes") != num_processes:
                problem = (
                    f"process {process_id} was started as one of {theirs.get('num_processes')}, not {num_processes}"
                )
                _answer(connection, {"error": problem})
            elif process_id in arrived or not 0 < process_id < num_processes:
                problem = f"two processes came with process id {process_id}; give each its own --process_id"
                _answer(connection, {"error": problem})
            else:
                arrived[process_id] = connection
                problem = _difference(hello["facts"], theirs.get("facts", {}), process_id=process_id)
        for connection in _late(server) if problem is not None else ():
            _read(connection, deadline=time.monotonic() + 1)
            _answer(connection, {"error": problem})
    # The port is free again here: JAX listens on it next.
    for connection in arrived.values():
        _answer(connection, {"go": True} if problem is None else {"error": problem})
    if problem is not None:
        raise UserError(f"coordinator {coordinator}: {problem}")
    return arrived


def _late(server: socket.socket) -> Iterator[socket.socket]:
    """Those that come while a problem is told: processes that were started together come within a second."""
    until = time.monotonic() + 1
    with contextlib.suppress(TimeoutError):
        while (left := until - time.monotonic()) > 0:
            server.settimeout(left)
            yield server.accept()[0]


def _told_at(port: int, *, hello: Mapping[str, Any]) -> str | None:
    """What is wrong with this process, in the words of one of its job that listens at its port already, if one does.

    So the first of two processes 0 on one machine ends too, instead of waiting for a process that will not come.
    """
    try:
        with socket.create_connection(("localhost", port), timeout=_HOLDER_SECONDS) as connection:
            connection.sendall(json.dumps(hello).encode() + b"\n")
            return _read(connection, deadline=time.monotonic() + _HOLDER_SECONDS).get("error")
    except OSError:
        return None


def _difference(mine: Mapping[str, Any], theirs: Mapping[str, Any], *, process_id: int) -> str | None:
    """The first fact in which another process differs from process 0."""
    mine = json.loads(json.dumps(mine))
    for key in sorted({*mine, *theirs}):
        values = [facts.get(key, "(absent)") for facts in (mine, theirs)]
        # As text: a not-a-number equals itself here.
        if json.dumps(values[0], sort_keys=True) != json.dumps(values[1], sort_keys=True):
            return (
                f"{key} is {values[0]!r} on process 0 and {values[1]!r} on process {process_id}; start all processes "
                "with the same command and code"
            )
    return None


def _report(
    address: tuple[str, int], *, hello: Mapping[str, Any], deadline: float, timeout_seconds: float
) -> socket.socket:
    where = f"coordinator {address[0]}:{address[1]}"
    me = f"process {hello['process_id']}"
    patience = _Patience(deadline)
    while True:
        try:
            connection = socket.create_connection(address, timeout=patience.seconds())
            break
        except OSError as error:
            left = deadline - time.monotonic()
            if left <= 0:
                raise UserError(
                    f"{where}: {me} could not reach it within {timeout_seconds:.0f} s "
                    f"({error.strerror or error}); check the address, that process 0 runs there, and the firewall"
                ) from None
            patience.say(f"{where}: {me} waits for process 0 to listen there ({error.strerror or error})")
            time.sleep(min(0.2, left))
    connection.settimeout(10)
    connection.sendall(json.dumps(hello).encode() + b"\n")
    while not select.select([connection], [], [], patience.seconds())[0]:
        if time.monotonic() > deadline + 5:  # process 0 knows who is missing: wait for its message
            break
        patience.say(f"{where}: {me} waits until all {hello['num_processes']} processes are there")
    answer = _read(connection, deadline=time.monotonic() + 5, chunk=1)  # what follows it is the lifeline's
    if "go" in answer:
        return connection
    connection.close()
    if "error" in answer:
        raise UserError(f"{where}: {answer['error']}")
    raise UserError(f"{where}: {me} got no answer that it knows; process 0 has ended, or another program listens there")


def _read(connection: socket.socket, *, deadline: float, chunk: int = _CHUNK) -> dict:
    """The JSON object of the first line; an empty one if something else comes, or nothing."""
    data = bytearray()
    try:
        while not data.endswith(b"\n") and len(data) < _LINE:
            connection.settimeout(max(deadline - time.monotonic(), 0.01))
            piece = connection.recv(chunk)
            if not piece:
                break
            data += piece
        value = json.loads(data)
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _answer(connection: socket.socket, answer: dict) -> None:
    # A process that has ended in the meantime needs no answer.
    with contextlib.suppress(OSError):
        connection.sendall(json.dumps(answer).encode() + b"\n")
    if "error" in answer:
        connection.close()
