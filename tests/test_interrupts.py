import os
import signal
import subprocess
import sys

import pytest
from processes import HEARS_HANG_UPS

from allam_jax import interrupts

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
try:
    del swallows
    print("swallowed", flush=True)
    {then}
    print("went on")
except interrupts.Terminated:
    print("SIGTERM")
except KeyboardInterrupt:
    print("SIGINT")
print(signal.getsignal(signal.SIGINT) is interrupts._on_signal)
"""


@pytest.mark.parametrize(
    ("name", "then"),
    [
        ("SIGINT", "StopSignal().__enter__()"),
        ("SIGTERM", "import time; time.sleep(20)"),
        ("SIGHUP", "while True: pass"),
    ],
)
def test_a_swallowed_signal_is_raised_again(name: str, then: str):
    code = SWALLOWS.format(name=name, then=then)
    command = [*HEARS_HANG_UPS, sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.splitlines() == ["swallowed", name.replace("HUP", "TERM"), "True"]
    assert done.stderr == ""


def test_a_request_notes_what_it_is_told_to_and_leaves_the_rest(capfd, monkeypatch):
    monkeypatch.setattr(interrupts, "_pending", [])
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with interrupts.StopRequest(notices={"SIGTERM": "stopping"}) as stop:
        assert signal.getsignal(signal.SIGINT) is before[0]
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
    assert stop.received == ["SIGTERM", "SIGTERM"]
    assert capfd.readouterr().err == "\nstopping\n\nstopping\n"
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    with pytest.raises(interrupts.Terminated):  # before the next work begins
        interrupts.raise_pending()
    assert interrupts.last_signal() == signal.SIGTERM


COMPILES = """
import ctypes, os, signal
from allam_jax import interrupts

class Swallows:
    def __del__(self):  # Python prints and drops what is raised here
        os.kill(os.getpid(), signal.SIGINT)
        for _ in range(1000):
            pass

interrupts.install()
swallows = Swallows()
del swallows
block = ctypes.CDLL(None).pause
while True:
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGURG])  # a library that no signal interrupts
    block()
"""


def test_a_swallowed_ctrl_c_ends_a_process_that_hears_nothing_more():
    done = subprocess.run([sys.executable, "-c", COMPILES], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (130, "interrupted; run the same command again to go on\n")


DEAF = """
import ctypes, os, signal, threading, time
from allam_jax import interrupts

interrupts.install()
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])  # the other thread gets it, as if it came before the wait
def send():
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
    time.sleep(0.3)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(60)
threading.Thread(target=send, daemon=True).start()
begun = time.monotonic()
try:
    with interrupts.StopRequest(notices={"SIGINT": "stopping"}):
        ctypes.CDLL(None).sleep(30)
        time.sleep(0)
except interrupts.Terminated:
    print("SIGTERM", time.monotonic() - begun < 4)
"""


def test_a_call_that_waits_hears_a_signal_that_came_just_before():
    done = subprocess.run([sys.executable, "-c", DEAF], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("SIGTERM True\n", "")
