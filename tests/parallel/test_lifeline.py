"""The connections of a job: all stop after one step, and all leave when one ends. No JAX is needed for that."""

import random
import socket
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from processes import child_environment, start, wait

from allam_jax import watchdog
from allam_jax.errors import PEER_ENDED, USER_ERROR
from allam_jax.parallel import lifeline
from allam_jax.parallel.lifeline import Lifeline

PROCESS = """
import os, signal, sys, time
from allam_jax.errors import UserError
from allam_jax.parallel.rendezvous import meet
me, port, size, deed = int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4]
line = meet(coordinator="127.0.0.1:" + port, num_processes=size, process_id=me, timeout_seconds=20)
print("met", flush=True)
if deed == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
if deed == "fail":
    line.end("error: the file is damaged", 2)
    os._exit(2)
if deed == "finish":
    line.finish()
    os._exit(0)
if deed == "killed at the end":
    time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGKILL)
time.sleep(30)
"""


_KEPT = []  # a lifeline whose connection closes ends its process, which here is that of the tests


def tcp_pair():
    """Two connected sockets."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        one = socket.create_connection(server.getsockname())
        return one, server.accept()[0]


def connected(size):
    """The lifelines of `size` processes, here all in one."""
    ends = {index: tcp_pair() for index in range(1, size)}
    first = Lifeline(0, {index: pair[0] for index, pair in ends.items()}, num_processes=size)
    return [first, *(Lifeline(index, {0: pair[1]}, num_processes=size) for index, pair in ends.items())]


@pytest.mark.parametrize("seed", range(5))
def test_all_stop_after_the_same_step_wherever_they_are(seed):
    rng = random.Random(seed)
    size = rng.randint(2, 4)
    lines = connected(size)
    who, when = rng.randrange(size), rng.randint(1, 20)

    def loop(line):
        draw = random.Random(seed * 100 + lines.index(line))
        for steps in (25, 1000):  # two stages of a recipe; the signal comes in the first one or the second
            line.begin_loop()
            for step in range(1, steps + 1):
                time.sleep(draw.uniform(0, 0.004))
                if line is lines[who] and step == when and steps == (25, 1000)[seed % 2]:
                    line.request_stop("SIGTERM")
                if name := line.stop_after(step):
                    return steps, step, name
        return None

    with ThreadPoolExecutor(size) as pool:
        ends = list(pool.map(loop, lines))
    assert len(set(ends)) == 1
    assert ends[0] is not None
    assert ends[0][2] == "SIGTERM"
    assert ends[0][1] < 400


def until(condition):
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_process_0_hears_where_all_are_and_the_others_where_it_is(monkeypatch):
    monkeypatch.setattr(watchdog, "_place", watchdog.Place(3, "data", time.monotonic() - 50))
    lines = connected(3)
    until(lambda: None not in lines[0].places())
    until(lambda: lines[1].places()[0])
    now = time.monotonic()
    for place in lines[0].places():
        assert place[:2] == (3, "data")
        assert now - place.since == pytest.approx(50, abs=2)
    assert [place and place[:2] for place in lines[1].places()] == [(3, "data"), (3, "data"), None]


@pytest.mark.parametrize("me", [0, 1])
def test_who_says_nothing_any_more_does_not_answer(monkeypatch, me):
    monkeypatch.setattr(lifeline, "_ANSWER_SECONDS", 0.3)
    theirs, ours = tcp_pair()
    _KEPT.append(theirs)
    line = Lifeline(me, {1 - me: ours}, num_processes=2)
    assert line.places()[1 - me] is None
    theirs.sendall(b'{"at": [7, "step", 0.0]}\n')
    until(lambda: line.places()[1 - me])
    assert line.places()[1 - me][:2] == (7, "step")
    until(lambda: line.places()[1 - me].phase == watchdog.NO_ANSWER)
    assert line.places()[1 - me].step == 7
    assert watchdog.late(line.places()) == [1 - me]


@pytest.fixture
def job(port):
    """Starts one process for each deed; gives how they end, and the seconds from the meeting on."""

    def run(*deeds):
        size = len(deeds)
        processes = [
            start([sys.executable, "-c", PROCESS, index, port, size, deed], environment=child_environment())
            for index, deed in enumerate(deeds)
        ]
        try:
            for process in processes:
                process.stdout.readline()
            begin = time.monotonic()
            return [wait(process, timeout=20) for process in processes], time.monotonic() - begin
        finally:
            for process in processes:
                process.kill()

    return run


@pytest.mark.parametrize("victim", [0, 1])
def test_when_one_is_killed_the_others_leave_at_once_and_say_so(job, victim):
    deeds = ["wait"] * 3
    deeds[victim] = "kill"
    ends, seconds = job(*deeds)
    assert seconds < 5
    for index, end in enumerate(ends):
        if index != victim:
            assert end.status == PEER_ENDED
            (line,) = end.err.strip().splitlines()
            assert line.startswith(f"error: process {victim} of 3 has ended: without a word")


@pytest.mark.parametrize("victim", [0, 2])
def test_an_error_of_one_is_the_error_of_all(job, victim):
    deeds = ["wait"] * 3
    deeds[victim] = "fail"
    ends, seconds = job(*deeds)
    assert seconds < 5
    assert [end.status for end in ends] == [USER_ERROR] * 3
    for index, end in enumerate(ends):
        if index != victim:
            assert end.err.strip() == f"error: process {victim} of 3: the file is damaged"


def test_who_has_done_its_work_may_go(job):
    ends, _ = job("finish", "finish", "finish")
    assert [(end.status, end.err) for end in ends] == [(0, "")] * 3
    ends, seconds = job("finish", "killed at the end", "finish")
    assert [end.status for end in ends] == [PEER_ENDED, -9, PEER_ENDED]
    assert seconds < 10
