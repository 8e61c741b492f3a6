"""Throughput against hand-made clocks; the progress line on and off a terminal."""

import io

import pytest

from allam_jax.training.progress import ProgressLine, Throughput, format_progress


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_throughput_is_the_windows_and_leaves_pauses_out():
    clock = Clock()
    throughput = Throughput(
        total_steps=10, tokens_per_step=1000, flops_per_token=6.0, peak_flops=12_000.0, window=2, clock=clock
    )
    clock.now += 10  # compiling
    assert throughput.step(1)["seconds"] == 10
    throughput.restart()
    clock.now += 1
    timing = throughput.step(2)
    assert timing == pytest.approx({"seconds": 1, "tokens_per_second": 1000, "eta": 8, "mfu": 0.5})
    clock.now += 1
    with throughput.pause():
        clock.now += 50
    clock.now += 2
    timing = throughput.step(3)
    assert timing == pytest.approx({"seconds": 3, "tokens_per_second": 500, "eta": 14, "mfu": 0.25})
    clock.now += 1
    timing = throughput.step(4)  # the first of the three has left the window
    assert timing == pytest.approx({"seconds": 1, "tokens_per_second": 500, "eta": 12, "mfu": 0.25})


def test_no_mfu_without_a_known_peak():
    assert "mfu" not in Throughput(total_steps=1, tokens_per_step=1, flops_per_token=6.0).step(1)


ROW = {
    "step": 120,
    "loss": 3.4119,
    "learning_rate": 5e-4,
    "tokens_per_second": 4312.3,
    "mfu": 0.306,
    "eta": 4000.4,
}


def test_the_line_says_what_is_known():
    assert format_progress(ROW, total_steps=640) == (
        "step 120/640  loss 3.412  lr 5.0e-04  4,312 tokens/s  MFU 31 %  ETA 1:06:40"
    )
    assert format_progress({"step": 1}, total_steps=2) == "step 1/2"


def test_a_terminal_gets_one_line_rewritten():
    clock, terminal = Clock(), Terminal()
    line = ProgressLine(total_steps=3, stream=terminal, clock=clock)
    for step in (1, 2, 3):
        line.show({"step": step})  # 2 comes too early to be shown, 3 is the last
    line.print("saved")
    line.end()
    assert terminal.getvalue() == "\r\x1b[Kstep 1/3\r\x1b[Kstep 3/3\nsaved\n"


def test_a_file_gets_a_plain_line_now_and_then():
    clock, file = Clock(), io.StringIO()
    line = ProgressLine(total_steps=100, stream=file, plain_every_seconds=30, clock=clock)
    for step in range(1, 101):
        line.show({"step": step})
        clock.now += 1
    line.end()
    assert file.getvalue().split("\n") == [
        "step 1/100",
        "step 31/100",
        "step 61/100",
        "step 91/100",
        "step 100/100",
        "",
    ]
