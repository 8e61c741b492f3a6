"""A silent process is reported, ended and named; and a real training run that hangs in its data."""

import re
import subprocess
import sys
import time

import pytest

from allam_jax.errors import STALLED
from allam_jax.watchdog import NO_ANSWER, Place, late

SILENT = """
import os, signal, sys, time
from allam_jax import interrupts, watchdog
interrupts.install()
others = lambda: [watchdog.place(), watchdog.Place(3, "data", time.monotonic() - 50), None]
minutes = 1 / 60
limits = {"report_minutes": 0.3 * minutes, "leave_minutes": float(sys.argv[2]) * minutes}
with watchdog.Watchdog(**limits, others=others, leaving=lambda line, status: print("told", status, flush=True)):
    for step in range(1, 5):
        watchdog.note("data", step=step)
        time.sleep(0.2)
        watchdog.note("step")
    {stuck}
print("came to its end")
"""
ASLEEP = "time.sleep(20)"


def run(stuck, leave_seconds):
    started = time.monotonic()
    command = [sys.executable, "-c", SILENT.replace("{stuck}", stuck), "", str(leave_seconds)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    return done, time.monotonic() - started


def test_silence_is_reported_and_then_ends_the_process():
    done, seconds = run(ASLEEP, 1.5)
    assert done.returncode == STALLED
    assert seconds < 10
    assert done.stdout == f"told {STALLED}\n"
    lines = done.stderr.splitlines()
    # After 0.3 s, after twice that time, after twice that, and at the end.
    assert [line for line in lines if "no progress for" in line and line.startswith("watchdog")] == [
        "watchdog: no progress for 0 s (step 4, step, for 0 s)",
        "watchdog: no progress for 1 s (step 4, step, for 1 s)",
        "watchdog: no progress for 1 s (step 4, step, for 1 s)",
        "watchdog: no progress for 2 s (step 4, step, for 2 s)",
    ]
    assert "watchdog: process 1: step 3, data, for 5" in done.stderr
    assert "s  <- late" in done.stderr
    assert "watchdog: process 2: not known" in done.stderr
    assert re.search(r'\n  File "<string>", line \d+ in <module>\n', done.stderr), "the stack of the thread that sleeps"
    assert lines[-1].startswith(
        "error: no progress for 2 s (step 4, step, for 2 s); process 1 is late; ended without saving"
    )


def test_without_limits_and_with_progress_nothing_is_said():
    done, _ = run("", 1.5)
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "came to its end\n")


@pytest.mark.parametrize(
    ("places", "expected"),
    [
        ([(7, "log"), (5, "data")], [1]),  # one step ahead, because JAX does not wait
        ([(7, "step"), (7, "data"), (7, "step")], [1]),
        ([(7, "step"), (7, "step")], []),  # the devices themselves hang
        ([(7, "step"), (7, "evaluate"), (6, "step")], [2]),
        ([(7, "data"), (7, "data")], []),
        ([None, (3, "data")], []),
        ([(7, "data"), (8, NO_ANSWER)], [1]),  # ahead, because JAX does not wait, and then stopped
        ([None, (3, "data"), (3, NO_ANSWER)], [2]),
        ([], []),
    ],
)
def test_who_is_late(places, expected):
    assert late([Place(*place, 0.0) if place else None for place in places]) == expected
