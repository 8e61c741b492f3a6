"""The watchdog in a run whose data hang: it says where, and ends the run with a status of its own."""

from pathlib import Path

import pytest
from forked import Forked
from launcher import TINY, run_command
from processes import child_environment, wait

from allam_jax.errors import STALLED
from allam_jax.training.stored_checkpoints import list_steps

HANGING = Path(__file__).with_name("hanging_run.py")


@pytest.mark.slow
@pytest.mark.usefixtures("reference")  # which has compiled the programs: compiling is no progress
def test_a_run_that_hangs_in_its_data_says_so_and_ends(launcher, tmp_path):
    limits = {"metrics.stall_report_minutes": 0.05, "metrics.stall_leave_minutes": 0.2}
    command = run_command(tmp_path / "run", config=f"{TINY}:{launcher.root}", **limits)
    environment = child_environment(cache=launcher.cache)
    finished = wait(Forked([HANGING, "7", "0", *command], environment=environment), timeout=200)
    assert finished.status == STALLED
    assert "watchdog: no progress for" in finished.err
    assert "(step 7, data, for" in finished.err
    assert "next_batch" in finished.err, "the stacks of the threads"
    assert finished.err.splitlines()[-1].startswith("error: no progress for")
    assert list_steps(tmp_path / "run" / "checkpoints") == [4], "what the same command goes on from"
