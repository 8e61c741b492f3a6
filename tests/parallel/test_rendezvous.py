"""Processes that meet, or do not: played by threads on real sockets."""

import socket
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from allam_jax.errors import UserError
from allam_jax.parallel import rendezvous
from allam_jax.parallel.rendezvous import meet


def gather(*guests, port, timeout_seconds=20.0):
    """Lets (process_id, num_processes) meet at `port`; gives the error message of each, or None."""

    def come(guest):
        process_id, num_processes = guest
        try:
            meet(
                coordinator=f"127.0.0.1:{port}",
                num_processes=num_processes,
                process_id=process_id,
                timeout_seconds=timeout_seconds,
            )
        except UserError as error:
            return str(error)
        return None

    with ThreadPoolExecutor(len(guests)) as pool:
        messages = list(pool.map(come, guests))
    assert not any("\n" in message for message in messages if message)
    return messages


@pytest.mark.parametrize("num_processes", [2, 5])
def test_all_come(port, num_processes):
    guests = [(i, num_processes) for i in reversed(range(num_processes))]
    assert gather(*guests, port=port) == [None] * num_processes
    socket.create_server(("", port)).close()  # and the port is free for JAX


def test_nobody_leaves_before_the_last_has_come(port):
    left = {}

    def come(process_id, delay):
        time.sleep(delay)
        arrived = time.monotonic()
        meet(coordinator=f"127.0.0.1:{port}", num_processes=3, process_id=process_id, timeout_seconds=20)
        left[process_id] = time.monotonic()
        return arrived

    with ThreadPoolExecutor(3) as pool:
        arrivals = list(pool.map(come, (0, 1, 2), (0.0, 0.1, 1.0)))
    assert min(left.values()) > max(arrivals)


def test_coordinator_comes_last(port):
    def late():
        time.sleep(1.0)
        meet(coordinator=f"127.0.0.1:{port}", num_processes=2, process_id=0, timeout_seconds=20)

    with ThreadPoolExecutor(1) as pool:
        coordinator = pool.submit(late)
        assert gather((1, 2), port=port) == [None]
        coordinator.result()


def test_everybody_is_told_who_is_missing(port):
    messages = gather((0, 5), (2, 5), (4, 5), port=port, timeout_seconds=1.5)
    assert all("process(es) 1, 3 of 5 did not come in time" in message for message in messages)


def test_processes_that_disagree_about_their_number(port):
    for message in gather((0, 2), (1, 3), port=port):
        assert "process 1 was started as one of 3, not 2" in message


@pytest.mark.parametrize("twice", [0, 1])
def test_two_with_the_same_id(port, twice):
    for message in gather((0, 3), (1, 3), (twice, 3), port=port):
        assert f"two processes came with process id {twice}; give each its own --process_id" in message


def test_after_a_while_it_says_for_whom_it_waits(port, monkeypatch, caplog):
    monkeypatch.setattr(rendezvous, "_SAY_AFTER_SECONDS", (0.2, 0.6))
    gather((0, 3), (2, 3), port=port, timeout_seconds=1.2)
    said = [record.getMessage() for record in caplog.records]
    # Once or twice, by how fast this machine is.
    assert [line for line in said if f"waiting at 127.0.0.1:{port} for process(es) 1 of 3; giving up in" in line]
    assert [line for line in said if "process 2 waits until all 3 processes are there" in line]
    caplog.clear()
    gather((1, 2), port=port, timeout_seconds=0.5)
    assert f"coordinator 127.0.0.1:{port}: process 1 waits for process 0 to listen there" in caplog.text


@pytest.mark.parametrize(
    ("theirs", "words"),
    [
        ({"config.schedule.peak_lr": 0.1}, "config.schedule.peak_lr is 0.003 on process 0 and 0.1 on process 1"),
        ({"the revision of the code": "b"}, "the revision of the code is 'a' on process 0 and 'b' on process 1"),
        ({"config.new": 1}, "config.new is '(absent)' on process 0 and 1 on process 1"),
        ({}, None),
    ],
)
def test_processes_with_other_configs_are_told_the_key(port, theirs, words):
    mine = {"config.schedule.peak_lr": 0.003, "the revision of the code": "a", "config.nan": float("nan"), "t": (1, 2)}

    def come(process_id):
        facts = mine | theirs if process_id else mine
        address = f"127.0.0.1:{port}"
        try:
            meet(coordinator=address, num_processes=2, process_id=process_id, timeout_seconds=20, facts=facts)
        except UserError as error:
            return str(error)
        return None

    with ThreadPoolExecutor(2) as pool:
        for message in pool.map(come, (0, 1)):
            assert message is None if words is None else words in message


def test_coordinator_that_is_not_there(port):
    (message,) = gather((1, 2), port=port, timeout_seconds=1)
    assert message.startswith(f"coordinator 127.0.0.1:{port}: process 1 could not reach it within 1 s")


def test_name_that_does_not_resolve():
    with pytest.raises(UserError, match=r"no-such-host\.invalid:61500: process 1 could not reach it"):
        meet(coordinator="no-such-host.invalid:61500", num_processes=2, process_id=1, timeout_seconds=0.5)


def test_port_that_is_taken(monkeypatch):
    monkeypatch.setattr(rendezvous, "_HOLDER_SECONDS", 0.1)
    with socket.create_server(("", 0)) as holder:
        port = holder.getsockname()[1]
        (message,) = gather((0, 2), port=port)
    assert f"cannot listen on port {port}" in message


@pytest.mark.parametrize("words", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"[1]\n", b'{"hello": 1}\n'])
def test_another_program_at_the_port(words):
    with socket.create_server(("", 0)) as other, ThreadPoolExecutor(1) as pool:

        def answer():
            connection, _ = other.accept()
            with connection:
                connection.sendall(words)

        pool.submit(answer)
        (message,) = gather((1, 2), port=other.getsockname()[1], timeout_seconds=2)
    assert "got no answer that it knows" in message


@pytest.mark.parametrize("words", [b"", b"GET / HTTP/1.1\r\n\r\n", b'{"process_id": "x"}\n', b"\xff\xfe\n"])
def test_strangers_do_not_disturb(port, words):
    with ThreadPoolExecutor(1) as pool:
        coordinator = pool.submit(gather, (0, 2), port=port)
        deadline = time.monotonic() + 10
        while True:
            try:
                stranger = socket.create_connection(("127.0.0.1", port), timeout=1)
                break
            except ConnectionRefusedError:
                assert time.monotonic() < deadline
                time.sleep(0.05)
        with stranger:
            stranger.sendall(words)
        assert gather((1, 2), port=port) == [None]
        assert coordinator.result() == [None]


@pytest.mark.parametrize("address", ["somewhere", "host:", "host:port", "host:0", "host:65536", ":61500"])
def test_addresses_that_are_none(address):
    with pytest.raises(UserError, match="expected host:port of process 0"):
        meet(coordinator=address, num_processes=2, process_id=0, timeout_seconds=1)
