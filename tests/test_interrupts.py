import subprocess
import sys

import pytest

SWALLOWS = """
import os, signal
from allam_jax import interrupts
from allam_jax.training.signals import StopSignal

class Swallows:
    def __del__(self):  # Python prints and drops what is raised here
        os.kill(os.getpid(), signal.{name})
        for _ in range(1000):
            pass

interrupts.install()
swallows = Swallows()
del swallows
print("swallowed", flush=True)
try:
    with StopSignal():
        print("went on")
except interrupts.Terminated:
    print("SIGTERM")
except KeyboardInterrupt:
    print("SIGINT")
print(signal.getsignal(signal.SIGINT).__module__)
"""


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_swallowed_signal_stops_the_loop_before_it_begins(name: str):
    done = subprocess.run(
        [sys.executable, "-c", SWALLOWS.format(name=name)], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == ["swallowed", name, "allam_jax.interrupts"]
    assert "Exception ignored" in done.stderr
