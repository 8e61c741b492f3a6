"""The watchdog in a run whose data hang: it says where, and ends the run with a status of its own."""

import sys
from pathlib import Path

import pytest
from launcher import TINY, read_rows, run_command
from processes import child_environment, start, wait

from allam_jax.errors import STALLED

HANGING = Path(__file__).with_name("hanging_run.py")


@pytest.mark.slow
def test_a_run_that_hangs_in_its_data_says_so_and_ends(launcher, reference, tmp_path):
    limits = {"metrics.stall_report_minutes": 0.05, "metrics.stall_leave_minutes": 0.5}
    command = run_command(tmp_path / "run", config=f"{TINY}:{launcher.root}", **limits)
    environment = child_environment(cache=launcher.cache)
    finished = wait(start([sys.executable, HANGING, "7", "0", *command], environment=environment), timeout=200)
    assert finished.status == STALLED
    assert "watchdog: no progress for" in finished.err
    assert "(step 7, data, for" in finished.err
    assert "next_batch" in finished.err, "the stacks of the threads"
    assert finished.err.splitlines()[-1].startswith("error: no progress for")
    # The same command goes on from the last checkpoint, to the same numbers.
    launcher.train(tmp_path / "run")
    assert read_rows(tmp_path / "run") == read_rows(reference)
