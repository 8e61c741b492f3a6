"""run.py whose data hang for ever before a step: `hanging_run.py STEP PROCESS COMMAND...`; only in that process."""

import os
import runpy
import sys

from allam_jax.training.session import Session

step, process, *command = sys.argv[1:]
read = Session.next_batch


def next_batch(session):
    if int(session.state.step) + 1 == int(step) and process == os.environ.get("JAX_PROCESS_ID", "0"):
        os.read(os.pipe()[0], 1)  # nobody ever writes there
    return read(session)


Session.next_batch = next_batch
sys.argv = command
runpy.run_path(command[0], run_name="__main__")
