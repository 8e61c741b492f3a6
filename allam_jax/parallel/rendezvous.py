"""All processes of a job meet before JAX starts.

`jax.distributed` ends the process with a C++ stack trace if it cannot reach the coordinator, if a process is missing or
if the port is taken. This file tries the same host and port with a plain socket first. What is wrong becomes a message,
and JAX starts only when all processes are there.

The protocol is one line of JSON each way. A process sends `{"process_id", "num_processes"}`. When all have come, the
coordinator answers `{"go": true}`; otherwise it answers `{"error": ...}`.
"""

import contextlib
import json
import socket
import time

from allam_jax.errors import UserError

_LINE = 4096  # bytes, at most


def meet(*, coordinator: str, num_processes: int, process_id: int, timeout_seconds: float) -> None:
    """Returns on every process once all `num_processes` have called it.

    Args:
        coordinator: `host:port` of process 0, which listens there on all interfaces.
        num_processes: how many must come.
        process_id: 0 is the coordinator.
        timeout_seconds: how long to wait for the others.

    Raises:
        UserError: the address is malformed, unreachable or taken; processes are missing, or disagree about the job.
    """
    host, port = _split(coordinator)
    deadline = time.monotonic() + timeout_seconds
    if process_id == 0:
        _receive_all(coordinator, port=port, num_processes=num_processes, deadline=deadline)
    else:
        hello = {"process_id": process_id, "num_processes": num_processes}
        _report((host, port), hello=hello, deadline=deadline, timeout_seconds=timeout_seconds)


def _split(coordinator: str) -> tuple[str, int]:
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise UserError(f"coordinator {coordinator!r}: expected host:port of process 0, such as 10.0.0.1:61500")
    return host.strip("[]"), int(port)


def _receive_all(coordinator: str, *, port: int, num_processes: int, deadline: float) -> None:
    family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
    try:
        server = socket.create_server(
            ("", port), family=family, backlog=num_processes, dualstack_ipv6=family == socket.AF_INET6
        )
    except OSError as error:
        raise UserError(
            f"coordinator {coordinator}: process 0 cannot listen on port {port} ({error.strerror}); "
            "choose another port or end the process that holds it"
        ) from None
    arrived: dict[int, socket.socket] = {}
    problem = None
    with server:
        while problem is None and len(arrived) < num_processes - 1:
            left = deadline - time.monotonic()
            if left <= 0:
                missing = [str(i) for i in range(1, num_processes) if i not in arrived]
                problem = f"process(es) {', '.join(missing)} of {num_processes} did not come in time"
                break
            server.settimeout(left)
            try:
                connection, _ = server.accept()
            except TimeoutError:
                continue
            hello = _read(connection, deadline=min(deadline, time.monotonic() + 5))
            process_id = hello.get("process_id")
            if not isinstance(process_id, int):
                connection.close()  # another program, such as a port scanner
            elif hello.get("num_processes") != num_processes:
                problem = (
                    f"process {process_id} was started as one of {hello.get('num_processes')}, not {num_processes}"
                )
                _answer(connection, {"error": problem})
            elif process_id in arrived or not 0 < process_id < num_processes:
                problem = f"two processes came with process id {process_id}; each needs its own"
                _answer(connection, {"error": problem})
            else:
                arrived[process_id] = connection
    # The port is free again here: JAX listens on it next.
    for connection in arrived.values():
        _answer(connection, {"go": True} if problem is None else {"error": problem})
    if problem is not None:
        raise UserError(f"coordinator {coordinator}: {problem}")


def _report(address: tuple[str, int], *, hello: dict, deadline: float, timeout_seconds: float) -> None:
    where = f"coordinator {address[0]}:{address[1]}"
    while True:
        left = deadline - time.monotonic()
        try:
            connection = socket.create_connection(address, timeout=max(left, 0.1))
            break
        except OSError as error:
            if left <= 0:
                raise UserError(
                    f"{where}: process {hello['process_id']} could not reach it within {timeout_seconds:.0f} s "
                    f"({error.strerror or error}); check the address, that process 0 runs there, and the firewall"
                ) from None
            time.sleep(min(0.2, left))
    with connection:
        connection.sendall(json.dumps(hello).encode() + b"\n")
        answer = _read(connection, deadline=deadline + 5)  # process 0 knows who is missing: wait for its message
    if "error" in answer:
        raise UserError(f"{where}: {answer['error']}")
    if "go" not in answer:
        raise UserError(
            f"{where}: process {hello['process_id']} got no answer that it knows; "
            "process 0 has ended, or another program listens there"
        )


def _read(connection: socket.socket, *, deadline: float) -> dict:
    """The JSON object of the first line; an empty one if something else comes, or nothing."""
    data = b""
    try:
        while not data.endswith(b"\n") and len(data) < _LINE:
            connection.settimeout(max(deadline - time.monotonic(), 0.01))
            piece = connection.recv(_LINE)
            if not piece:
                break
            data += piece
        value = json.loads(data)
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _answer(connection: socket.socket, answer: dict) -> None:
    # A process that has ended in the meantime needs no answer.
    with connection, contextlib.suppress(OSError):
        connection.sendall(json.dumps(answer).encode() + b"\n")
