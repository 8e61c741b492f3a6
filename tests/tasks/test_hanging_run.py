"""The watchdog in runs that hang, alone or two together: it says where, and ends them with a status of its own."""

import re
import signal
import sys
from pathlib import Path

import pytest
from forked import Forked
from launcher import TINY, read_rows, run_command
from processes import child_environment, free_port, start, wait, wait_until

from allam_jax.errors import STALLED
from allam_jax.training.stored_checkpoints import list_steps
from allam_jax.watchdog import NO_ANSWER

HANGING = Path(__file__).with_name("hanging_run.py")


@pytest.mark.slow
@pytest.mark.usefixtures("reference")  # which has compiled the programs: compiling is no progress
def test_a_run_that_hangs_in_its_data_says_so_and_ends(launcher, tmp_path):
    limits = {"metrics.stall_report_minutes": 0.05, "metrics.stall_leave_minutes": 0.12}
    command = run_command(tmp_path / "run", config=f"{TINY}:{launcher.root}", **limits)
    environment = child_environment(cache=launcher.cache)
    finished = wait(Forked([HANGING, "7", "0", *command], environment=environment), timeout=200)
    assert finished.status == STALLED
    assert "watchdog: no progress for" in finished.err
    assert "(step 7, data, for" in finished.err
    assert "next_batch" in finished.err, "the stacks of the threads"
    assert finished.err.splitlines()[-1].startswith("error: no progress for")
    assert list_steps(tmp_path / "run" / "checkpoints") == [4], "what the same command goes on from"


@pytest.fixture
def pair(launcher, tmp_path):
    """Starts the run by two processes; `before` are the arguments before those of run.py."""
    limits = {"metrics.stall_report_minutes": 0.2, "metrics.stall_leave_minutes": 0.5}
    command = run_command(tmp_path / "run", config=f"{TINY}:{launcher.root}", **limits)

    def begin(*before):
        address = f"127.0.0.1:{free_port()}"
        return [
            start(
                [sys.executable, *before, *command],
                environment=child_environment(
                    cache=launcher.cache,
                    JAX_NUM_PROCESSES="2",
                    JAX_PROCESS_ID=str(index),
                    JAX_COORDINATOR_ADDRESS=address,
                ),
            )
            for index in range(2)
        ]

    return begin


def ends_of(processes, *, timeout):
    try:
        return [wait(process, timeout=timeout) for process in processes]
    finally:
        for process in processes:
            process.kill()


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("victim", [0, 1])
def test_of_two_processes_the_other_one_names_the_one_that_is_stopped(pair, tmp_path, victim):
    processes = pair()
    wait_until(lambda: len(read_rows(tmp_path / "run")) > 5, process=processes[0])
    processes[victim].send_signal(signal.SIGSTOP)
    (other,) = ends_of([processes[1 - victim]], timeout=100)
    assert other.status == STALLED, other.err[-3000:]
    assert f"watchdog: process {victim}: step " in other.err
    assert f"{NO_ANSWER}, for " in other.err
    assert f"; process {victim} is late; ended without saving" in other.err.splitlines()[-1]
    processes[victim].send_signal(signal.SIGCONT)
    assert ends_of([processes[victim]], timeout=30)[0].status == STALLED
    assert [end.status for end in ends_of(pair(), timeout=200)] == [0, 0]
    assert [row["step"] for row in read_rows(tmp_path / "run") if "loss" in row] == list(range(1, 41))


@pytest.mark.slow
@pytest.mark.long
def test_of_two_processes_one_hangs_in_its_data(pair, tmp_path):
    ends = ends_of(pair(HANGING, "7", "1"), timeout=200)
    assert [end.status for end in ends] == [STALLED, STALLED]
    assert re.search(r"watchdog: process 1: step 7, data, for \d+ s  <- late", ends[0].err), ends[0].err[-3000:]
    for end in ends:
        assert "no progress for" in end.err.splitlines()[-1]
