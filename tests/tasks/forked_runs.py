"""run.py many times out of one process that has imported what its tasks import, which takes longer than most errors.

Reads lines of JSON, each with a command, an environment, files for its output and, if wanted, the seconds after which
it is killed; for each it forks a process that is run.py, and prints that process's exit status.
"""

import json
import os
import runpy
import signal
import sys

import allam_jax.tasks.corpus
import allam_jax.tasks.train  # noqa: F401

for line in sys.stdin:
    run = json.loads(line)
    child = os.fork()
    if child == 0:
        for stream, path in ((1, run["out"]), (2, run["err"])):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), stream)
        os.environ.update(run["environment"])
        signal.alarm(run.get("seconds", 0))
        sys.argv = run["command"]
        runpy.run_path(run["command"][0], run_name="__main__")
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
